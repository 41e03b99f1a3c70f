"""Every call of the HTTP API as steps: what is sent, and what its answer means."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from batchyard import results, schemas
from batchyard.errors import (
    BatchyardError,
    Gone,
    InvalidInput,
    InvalidRequest,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    NotFound,
    TooLarge,
    WaitTimeout,
)
from batchyard.jobs import ErrorInfo, State
from batchyard.sdk.steps import MEDIA_MSGPACK, Patience, Request, Response, Steps, call

T = TypeVar("T")

POLL_SECONDS = 30.0
"""One long poll."""

WAITING_PATIENCE_SECONDS = 120.0
"""A wait for results outlives an API that is away for this long."""

EITHER = f"{MEDIA_MSGPACK}, {schemas.MEDIA_JSON};q=0.5"
"""Accepted for jobs with results: MessagePack keeps tensors binary."""


class Options(TypedDict, total=False):
    """What jobs may be told at submission."""

    params: Mapping[str, Any] | None
    """Handed to the model's `preprocess`."""
    priority: int
    """0 to 9; 9 goes first, 5 is the default."""
    tolerant: bool | None
    """May run on spot capacity; the model's own default where not given."""
    deadline_seconds: float | None
    """When the result is wanted, from now."""
    max_failures: int | None
    labels: Sequence[str]
    webhook: str | None
    """The URL that hears of the end of each job, or of the bulk; see `batchyard.webhooks.verify`."""


class Which(TypedDict, total=False):
    """Which jobs are meant; all that is given must hold."""

    model: str | None
    """`model` for all its versions, or `model@version`."""
    state: schemas.StateWord | None
    label: str | None
    error: str | None
    """The code of their error: "crash_loop"."""
    finished_from: datetime | None
    """Times have an offset (`datetime.now(UTC)`)."""
    finished_before: datetime | None


JSON_ENCODER = msgspec.json.Encoder()


def encode_json(value: Any, *, what: str) -> bytes:
    """A value as JSON; InvalidInput says what has no JSON form."""
    try:
        return JSON_ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidInput(f"{what} has no JSON form: {error}; bytes are sent with client.upload(...)") from error


def decode(response: Response, kind: type[T]) -> T:
    """An answer as the struct that describes it."""
    try:
        if response.content_type == MEDIA_MSGPACK:
            return msgspec.msgpack.decode(response.body, type=kind)
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.MsgspecError as error:
        raise BatchyardError(f"the answer is not what batchyard's API gives ({error}); is the URL right?") from error


class JobRecord(msgspec.Struct, frozen=True):
    """A job as answered, with its result still encoded as `results` wants it."""

    job: schemas.Job
    format: int
    """How `job.result` is encoded: MessagePack, which `results` calls TENSORS, or JSON."""

    @property
    def is_finished(self) -> bool:
        return State[self.job.state.upper()].is_terminal

    def partial(self) -> Any:
        """What a running job has come to so far; None where nothing is told."""
        if self.job.partial is msgspec.UNSET:
            return None
        return (msgspec.msgpack if self.format == results.TENSORS else msgspec.json).decode(self.job.partial)

    def value(self) -> Any:
        """The result; raises the typed error of a job that ended without one."""
        return results.decode(self.format, self._body())

    def value_json(self) -> bytes:
        """The result as JSON text, tensors as numbers."""
        return results.to_json(self.format, self._body())

    def _body(self) -> bytes:
        if self.job.state != "succeeded":
            index = self.job.index if self.job.bulk_id is not None else None
            raise error_of(State[self.job.state.upper()], self.job.error, job_id=self.job.id, index=index)
        if self.job.result is msgspec.UNSET:
            raise Gone(f"the result of job {self.job.id} is no longer kept", job_id=self.job.id)
        return bytes(self.job.result)


def error_of(state: State, info: ErrorInfo | None, *, job_id: str, index: int | None) -> JobError:
    """The typed error of a job that ended without a result."""
    where = f"job {job_id}" if index is None else f"job {job_id} (index {index})"
    details: dict[str, Any] = {"job_id": job_id, "index": index}
    if state is State.CANCELLED:
        return JobCancelled(f"{where} was cancelled", **details)
    if state is State.EXPIRED:
        return JobExpired(f"{where} was not started by its deadline", **details)
    if info is None:
        return JobFailed(f"{where} has no result: it is {state.word}", **details)
    details["reason"] = info.message
    return JobFailed(f"{where} failed: {info.message}", code=info.code, retryable=info.retryable, **details)


def _record(response: Response) -> JobRecord:
    return JobRecord(decode(response, schemas.Job), _format(response))


def _format(response: Response) -> int:
    return results.TENSORS if response.content_type == MEDIA_MSGPACK else results.JSON


def new_key() -> str:
    """An idempotency key, so that a request that is tried again never doubles."""
    return uuid.uuid4().hex


# --- jobs ---


def submit(
    model: str, item: Any, *, custom_id: str | None, idempotency_key: str | None, options: Options, patience: Patience
) -> Steps[JobRecord]:
    body = {"input": item, **_given(options), **({"custom_id": custom_id} if custom_id is not None else {})}
    response = yield from call(_submission(model, body, idempotency_key), patience)
    accepted = decode(response, schemas.SubmittedJob)
    job = schemas.Job(
        id=accepted.id,
        model=accepted.model,
        lane=accepted.lane,
        state=accepted.state,
        created_at=accepted.created_at,
        priority=options.get("priority", 5),
        custom_id=custom_id,
    )
    return JobRecord(job, results.JSON)


def submit_many(
    model: str,
    inputs: Sequence[Any],
    *,
    custom_ids: Sequence[str | None] | None,
    idempotency_key: str | None,
    options: Options,
    patience: Patience,
) -> Steps[list[JobRecord]]:
    body = {"inputs": inputs, **_given(options), **({"custom_ids": custom_ids} if custom_ids is not None else {})}
    response = yield from call(_submission(model, body, idempotency_key), patience)
    accepted = decode(response, schemas.SubmittedJobs)
    return [
        JobRecord(
            schemas.Job(
                id=job_id,
                model=accepted.model,
                lane=accepted.lane,
                state="queued",
                created_at=accepted.created_at,
                priority=options.get("priority", 5),
                index=index,
                custom_id=custom_ids[index] if custom_ids is not None else None,
            ),
            results.JSON,
        )
        for index, job_id in enumerate(accepted.ids)
    ]


def _submission(model: str, body: Mapping[str, Any], idempotency_key: str | None) -> Request:
    return Request(
        method="POST",
        path=f"/v1/models/{quote(model, safe='@')}/jobs",
        body=encode_json(body, what="the input"),
        idempotency_key=idempotency_key or new_key(),
    )


def _given(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def get_job(job_id: str, *, wait_seconds: float, patience: Patience) -> Steps[JobRecord]:
    query = {"wait": f"{wait_seconds:.3f}"} if wait_seconds > 0 else {}
    response = yield from call(
        Request(method="GET", path=f"/v1/jobs/{quote(job_id)}", query=query, accept=EITHER, wait_seconds=wait_seconds),
        patience,
    )
    return _record(response)


def wait(job_id: str, *, timeout_seconds: float | None, patience: Patience) -> Steps[JobRecord]:
    """Poll until the job has ended; WaitTimeout leaves it running."""
    end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    while True:
        left = POLL_SECONDS if end is None else max(0.0, end - time.monotonic())
        record = yield from get_job(job_id, wait_seconds=min(left, POLL_SECONDS), patience=patience)
        if record.is_finished:
            return record
        if end is not None and time.monotonic() >= end:
            reason = record.job.waits_because
            because = "" if reason is None else f" ({reason.message})"
            raise WaitTimeout(
                f"job {job_id} is still {record.job.state} after {timeout_seconds:g} s{because}; "
                "it goes on: wait again, or cancel it",
                job_id=job_id,
            )


def lookup(
    ids: Sequence[str], *, wait_seconds: float, until: Literal["any", "all"], patience: Patience
) -> Steps[list[JobRecord]]:
    """The jobs in the order asked for, MAX_LOOKUP_IDS a call; NotFound or Gone where one is no longer there."""
    found: list[JobRecord] = []
    for start in range(0, len(ids), schemas.MAX_LOOKUP_IDS):
        piece = list(ids[start : start + schemas.MAX_LOOKUP_IDS])
        body = schemas.LookupRequest(ids=piece, wait=wait_seconds, until=until)
        response = yield from call(
            Request(
                method="POST",
                path="/v1/jobs/lookup",
                body=JSON_ENCODER.encode(body),
                accept=EITHER,
                wait_seconds=wait_seconds,
            ),
            patience,
        )
        answer = decode(response, schemas.LookupAnswer)
        if answer.retired:
            raise Gone(f"no longer kept: {', '.join(answer.retired[:10])}", ids=answer.retired)
        if answer.missing:
            raise NotFound(f"no such jobs: {', '.join(answer.missing[:10])}", ids=answer.missing)
        found += [JobRecord(job, _format(response)) for job in answer.jobs]
    return found


def list_page(
    *, which: Which, after: str | None, limit: int, patience: Patience
) -> Steps[tuple[list[JobRecord], str | None]]:
    asked = {**which, "after": after, "limit": limit}
    query = {name: text_of(value) for name, value in asked.items() if value is not None}
    response = yield from call(Request(method="GET", path="/v1/jobs", query=query), patience)
    page = decode(response, schemas.JobList)
    return [JobRecord(job, _format(response)) for job in page.jobs], page.next


def text_of(value: object) -> str:
    """A parameter of a query."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def cancel(job_id: str, *, patience: Patience) -> Steps[JobRecord]:
    response = yield from call(Request(method="POST", path=f"/v1/jobs/{quote(job_id)}/cancel", accept=EITHER), patience)
    return _record(response)


def amend(job_id: str, *, priority: int | None, deadline_seconds: float | None, patience: Patience) -> Steps[JobRecord]:
    body = JSON_ENCODER.encode(schemas.JobPatch(priority=priority, deadline_seconds=deadline_seconds))
    response = yield from call(
        Request(method="PATCH", path=f"/v1/jobs/{quote(job_id)}", body=body, accept=EITHER), patience
    )
    return _record(response)


def forget(job_id: str, *, patience: Patience) -> Steps[None]:
    """A job that an earlier try already forgot counts as forgotten."""
    try:
        yield from call(Request(method="DELETE", path=f"/v1/jobs/{quote(job_id)}"), patience)
    except Gone:
        return


# --- payloads and models ---


def upload(content: bytes, *, content_type: str, patience: Patience) -> Steps[dict[str, str]]:
    response = yield from call(
        Request(method="POST", path="/v1/payloads", body=content, content_type=content_type), patience
    )
    return {"$payload": decode(response, schemas.Payload).id}


def models(*, patience: Patience) -> Steps[list[schemas.Model]]:
    response = yield from call(Request(method="GET", path="/v1/models"), patience)
    return decode(response, schemas.ModelList).models


def model(name: str, *, patience: Patience) -> Steps[schemas.Model]:
    response = yield from call(Request(method="GET", path=f"/v1/models/{quote(name, safe='@')}"), patience)
    return decode(response, schemas.Model)


def set_paused(name: str, *, paused: bool, lane: schemas.LaneWord | None, patience: Patience) -> Steps[schemas.Model]:
    request = Request(
        method="POST",
        path=f"/v1/models/{quote(name, safe='@')}/{'pause' if paused else 'resume'}",
        query={} if lane is None else {"lane": lane},
    )
    response = yield from call(request, patience)
    return decode(response, schemas.Model)


def pools(*, patience: Patience) -> Steps[list[schemas.Pool]]:
    response = yield from call(Request(method="GET", path="/v1/pools"), patience)
    return decode(response, schemas.PoolList).pools


def pin_pool(name: str, *, replicas: int, patience: Patience) -> Steps[schemas.Pool]:
    body = JSON_ENCODER.encode(schemas.PinRequest(replicas=replicas))
    request = Request(method="POST", path=f"/v1/pools/{quote(name, safe='')}/pin", body=body)
    return decode((yield from call(request, patience)), schemas.Pool)


def steer_pool(name: str, verb: Literal["unpin", "pause", "resume"], *, patience: Patience) -> Steps[schemas.Pool]:
    request = Request(method="POST", path=f"/v1/pools/{quote(name, safe='')}/{verb}")
    return decode((yield from call(request, patience)), schemas.Pool)


def status(*, patience: Patience) -> Steps[schemas.Status]:
    response = yield from call(Request(method="GET", path="/v1/status"), patience)
    return decode(response, schemas.Status)


def metrics(*, patience: Patience) -> Steps[str]:
    response = yield from call(Request(method="GET", path="/metrics", accept="text/plain"), patience)
    return response.body.decode()


# --- bulks ---


def create_bulk(
    model: str, *, key: str, chunk_size: int | None, validate: bool, options: Options, patience: Patience
) -> Steps[schemas.Bulk]:
    body: dict[str, Any] = {"model": model, **_given(options)}
    if chunk_size is not None:
        body["chunk_size"] = chunk_size
    if not validate:
        body["validate"] = False
    request = Request(method="POST", path="/v1/bulks", body=encode_json(body, what="the options"), idempotency_key=key)
    response = yield from call(request, patience)
    return decode(response, schemas.Bulk)


def get_bulk(bulk_id: str, *, patience: Patience) -> Steps[schemas.Bulk]:
    response = yield from call(Request(method="GET", path=f"/v1/bulks/{quote(bulk_id)}"), patience)
    return decode(response, schemas.Bulk)


def encode_chunk(inputs: Iterable[Any], *, first_index: int, custom_ids: Iterable[str | None] | None = None) -> bytes:
    chunk = {"inputs": inputs if isinstance(inputs, list) else list(inputs)}
    if custom_ids is not None:
        chunk["custom_ids"] = list(custom_ids)
    return encode_json(chunk, what=f"an input from index {first_index} on")


def add_chunk(bulk_id: str, body: bytes, *, first_index: int, patience: Patience) -> Steps[schemas.ChunkAccepted]:
    """The key of a chunk is the index of its first job, so that whoever goes on after a crash repeats it exactly."""
    request = Request(
        method="POST", path=f"/v1/bulks/{quote(bulk_id)}/jobs", body=body, idempotency_key=str(first_index)
    )
    try:
        response = yield from call(request, patience)
    except (InvalidRequest, TooLarge) as refused:
        raise _with_bulk_index(refused, first_index) from refused
    return decode(response, schemas.ChunkAccepted)


def _with_bulk_index(refused: BatchyardError, first_index: int) -> BatchyardError:
    """The API counts within the chunk; the caller within everything that it gave."""
    index = refused.details.get("index")
    if not isinstance(index, int):
        return refused
    details = {**refused.details, "index": first_index + index}
    return type(refused)(f"input {first_index + index}: {refused.message}", **details)


def seal(bulk_id: str, *, patience: Patience) -> Steps[schemas.Bulk]:
    response = yield from call(Request(method="POST", path=f"/v1/bulks/{quote(bulk_id)}/seal"), patience)
    return decode(response, schemas.Bulk)


def steer(bulk_id: str, verb: Literal["cancel", "pause", "resume"], *, patience: Patience) -> Steps[schemas.Bulk]:
    response = yield from call(Request(method="POST", path=f"/v1/bulks/{quote(bulk_id)}/{verb}"), patience)
    return decode(response, schemas.Bulk)


def results_request(bulk_id: str, *, after: int, wait_seconds: float) -> Request:
    """The stream of a bulk's results, in frames; ends by itself after `wait_seconds` without a new one."""
    return Request(
        method="GET",
        path=f"/v1/bulks/{quote(bulk_id)}/results",
        query={"after": str(after), "wait": f"{wait_seconds:g}"},
        accept=results.FRAMES_TYPE,
        wait_seconds=wait_seconds,
    )
