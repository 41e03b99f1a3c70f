"""What submissions refer to: their payloads, looked up, counted and kept, and their webhooks; inside SQLite's one write
transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from batchyard.jobs import ID_STRIDE, Submission
from batchyard.store.deltas import Deltas

encode = msgspec.json.encode

_PAYLOADS = "SELECT id, tenant_id, size, jobs FROM payloads WHERE id IN (SELECT value FROM json_each(?))"
_REFER = "INSERT INTO job_payloads (job_id, payload_id) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
_COUNT = """
UPDATE payloads SET jobs = jobs + (e.value ->> 1) FROM json_each(?) e WHERE payloads.id = e.value ->> 0
"""
_WEBHOOKS = "INSERT INTO job_webhooks (job_id, url) SELECT value ->> 0, value ->> 1 FROM json_each(?)"


class Named(NamedTuple):
    """A payload as this transaction found it."""

    tenant_id: int
    size: int
    jobs: int


def named_payloads(raw: Any, submissions: Sequence[Submission]) -> dict[int, Named]:
    """The payloads, of any tenant, that the submissions name and that exist. No statement where they name none."""
    ids = {reference.payload_id for submission in submissions for reference in submission.payloads}
    if not ids:
        return {}
    return {row[0]: Named(*row[1:]) for row in raw.execute(_PAYLOADS, (encode(sorted(ids)).decode(),))}


def refer(
    raw: Any,
    submissions: Sequence[Submission],
    first_ids: Mapping[int, int],
    payloads: Mapping[int, Named],
    *,
    now_ms: int,
    deltas: Deltas,
) -> None:
    """Let the new jobs refer to their payloads; `first_ids` holds those of the submissions taken, by place."""
    rows: list[tuple[int, int]] = []
    queue_of: dict[int, int] = {}
    for place, first_id in first_ids.items():
        for reference in submissions[place].payloads:
            rows.append((first_id + reference.index * ID_STRIDE, reference.payload_id))
            queue_of.setdefault(reference.payload_id, submissions[place].queue_id)
    if not rows:
        return
    raw.execute(_REFER, (encode(rows).decode(),))
    raw.execute(_COUNT, (encode(list(Counter(payload_id for _, payload_id in rows).items())).decode(),))
    for payload_id, queue_id in queue_of.items():
        payload = payloads[payload_id]
        if payload.jobs == 0:
            deltas.use(tenant_id=payload.tenant_id, queue_id=queue_id, now_ms=now_ms, input_bytes=payload.size)


def name_webhooks(raw: Any, submissions: Sequence[Submission], first_ids: Mapping[int, int]) -> None:
    """Keep the URLs that hear of the new jobs; `first_ids` as above. No statement where there are none."""
    rows: list[tuple[int, str]] = []
    for place, first_id in first_ids.items():
        if (url := submissions[place].webhook) is not None:
            ids = range(first_id, first_id + len(submissions[place].inputs) * ID_STRIDE, ID_STRIDE)
            rows.extend((job_id, url) for job_id in ids)
    if rows:
        raw.execute(_WEBHOOKS, (encode(rows).decode(),))
