"""Rows as the records that readers see; the statement of a job's whole view."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row, Select, case, select

from batchyard.jobs import ErrorInfo, State
from batchyard.store.base import JobView
from batchyard.store.tables import job_inputs, job_results, jobs

ERROR = 2
"""`batchyard.results.ERROR`: the body of a result row is an `ErrorInfo`."""

_LABELS = msgspec.json.Decoder(tuple[str, ...])
_ERROR = msgspec.json.Decoder(ErrorInfo)
_ENCODER = msgspec.json.Encoder()

_INPUT = (job_inputs.c.custom_id, job_inputs.c.labels, job_inputs.c.redrive_of)
_RESULT = (job_results.c.cost, job_results.c.device_us, job_results.c.format, job_results.c.computed_by)


def view_query(*, results: bool) -> Select[Any]:
    """Jobs with what `job_view` reads, errors always, other results where asked for; to be narrowed by the caller."""
    joined = jobs.join(job_inputs, job_inputs.c.job_id == jobs.c.id).outerjoin(
        job_results, job_results.c.job_id == jobs.c.id
    )
    body = job_results.c.body if results else case((job_results.c.format == ERROR, job_results.c.body))
    return select(*jobs.c, *_INPUT, *_RESULT, body.label("body")).select_from(joined)


def job_view(row: Row[Any]) -> JobView:
    """A row of `view_query` as its record."""
    found = row.format is not None
    is_error = row.format == ERROR
    shown = found and not is_error and row.body is not None
    return JobView(
        id=row.id,
        tenant_id=row.tenant_id,
        queue_id=row.queue_id,
        state=State(row.state),
        priority=shown_priority(row.priority),
        is_held=row.priority < 0,
        attempt=row.attempt,
        failures=row.failures,
        crashes=row.crashes,
        preemptions=row.preemptions,
        max_failures=row.max_failures,
        cancel_requested=bool(row.cancel_requested),
        cost_estimate=row.cost_estimate,
        created_at_ms=row.created_at,
        bulk_id=row.bulk_id,
        bulk_index=row.bulk_index,
        deadline_ms=row.deadline,
        not_before_ms=row.not_before,
        started_at_ms=row.started_at,
        finished_at_ms=row.finished_at,
        custom_id=row.custom_id,
        labels=load_labels(row.labels),
        redrive_of=row.redrive_of,
        cost=row.cost,
        device_us=row.device_us,
        result_format=row.format if shown else None,
        result_body=bytes(row.body) if shown else None,
        computed_by=row.computed_by,
        error=load_error(row.body) if is_error else None,
    )


def shown_priority(priority: int) -> int:
    """The priority that was asked for, held or not."""
    return priority if priority >= 0 else -1 - priority


def load_labels(text: str | None) -> tuple[str, ...]:
    return () if text is None else _LABELS.decode(text)


def dump_labels(labels: object) -> str | None:
    return _ENCODER.encode(labels).decode() if labels else None


def load_error(body: bytes | memoryview) -> ErrorInfo:
    return _ERROR.decode(body)


def dump_error(error: ErrorInfo | None) -> bytes:
    """An outcome without its error still leaves a result row that says so."""
    return _ENCODER.encode(error or ErrorInfo(code="failed", message="no reason was given"))
