"""Inserting jobs into SQLite: a handful of statements per group of like submissions, whatever their number.

The driver gives up the interpreter's lock at every row it binds in turn or fetches, and beside a busy thread each of
these may cost milliseconds. So rows travel as JSON arrays, which SQL takes apart, and bodies as one blob that SQL cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import msgspec

from batchyard.jobs import ID_STRIDE, Submission
from batchyard.store.deltas import Deltas
from batchyard.store.views import dump_labels

encode = msgspec.json.encode

LENGTH_BITS = 31
"""A span is a place in a blob and a length in one number: place << LENGTH_BITS | length."""
BLOB_BYTES = 64 * 1024 * 1024
"""Bodies bound at once; SQLite takes up to a billion bytes."""

_BODY = f"substr(?2, (%s >> {LENGTH_BITS}) + 1, %s & {(1 << LENGTH_BITS) - 1})"

_JOBS = f"""
INSERT INTO jobs (id, tenant_id, queue_id, state, priority, attempt, failures, crashes, preemptions, max_failures,
    cancel_requested, suspect, cost_estimate, created_at, bulk_id, bulk_index, deadline, start_by, ticketed_at)
SELECT ?1 + {ID_STRIDE} * key, ?2, ?3, 0, ?4, 0, 0, 0, 0, ?5,
    0, 0, value, ?6, ?7, ?8 + ?9 * key, ?10, ?11, ?12
FROM json_each(?13)
"""

_INPUTS = f"""
INSERT INTO job_inputs (job_id, labels, created_by, trace_context, affinity_key, max_cost, redrive_of, params, body)
SELECT ?1 + {ID_STRIDE} * key, ?4, ?5, ?6, ?7, ?8, ?9, ?10, {_BODY % ("value", "value")}
FROM json_each(?3)
"""

_RICH_INPUTS = f"""
INSERT INTO job_inputs (job_id, custom_id, input_digest, labels, created_by, trace_context, affinity_key, max_cost,
    redrive_of, params, body)
SELECT ?1 + {ID_STRIDE} * key, value ->> 1, unhex(value ->> 2), ?4, ?5, ?6, ?7, ?8, ?9, ?10,
    {_BODY % ("(value ->> 0)", "(value ->> 0)")}
FROM json_each(?3)
"""

_LABELS = f"""
INSERT OR IGNORE INTO job_labels (tenant_id, label, job_id)
SELECT ?1, label.value, ?2 + {ID_STRIDE} * job.key FROM json_each(?3) label CROSS JOIN json_each(?4) job
"""


class Packed(NamedTuple):
    """What a group binds, made before the transaction begins where that is possible: other writers need not wait."""

    costs: str
    pieces: Sequence[tuple[int, bytes, str]]
    """Place of the first body, the bodies joined, and what cuts them apart."""
    is_rich: bool
    """Whether custom ids or digests stand beside the spans."""
    total_cost: int
    input_bytes: int


class Group(NamedTuple):
    """Submissions that become consecutive rows alike in all but cost and body."""

    members: Sequence[Submission]
    priority: int
    """As stored: negative while held."""
    first_index: int
    """Index of the first job in its bulk or call; single jobs put together are each the first of their call."""

    @property
    def size(self) -> int:
        return sum(len(member.inputs) for member in self.members)


def like(submission: Submission) -> tuple[object, ...] | None:
    """What single jobs must share to be inserted together; None for what is a group by itself."""
    if len(submission.inputs) != 1 or submission.bulk_id is not None:
        return None
    one = submission
    order = (one.tenant_id, one.queue_id, one.priority, one.max_failures, one.deadline_ms, one.start_by_ms)
    rest = (one.params, one.created_by, one.trace_context, one.affinity_key, one.max_cost, one.redrive_of)
    return (*order, one.ticketed, tuple(one.labels), *rest)


def pack(members: Sequence[Submission]) -> Packed:
    """Put costs and bodies of like submissions into the form in which they travel."""
    costs = list(chain.from_iterable(member.costs for member in members))
    bodies = list(chain.from_iterable(member.inputs for member in members))
    identities = _identities(members)
    pieces = []
    for start, end in _pieces(bodies):
        piece = bodies[start:end]
        elements: Sequence[object] = spans(piece)
        if identities is not None:
            elements = [(span, *identity) for span, identity in zip(elements, identities[start:end], strict=True)]
        pieces.append((start, b"".join(piece), encode(elements).decode()))
    return Packed(
        costs=encode(costs).decode(),
        pieces=pieces,
        is_rich=identities is not None,
        total_cost=sum(costs),
        input_bytes=sum(map(len, bodies)),
    )


def insert_group(raw: Any, group: Group, packed: Packed, *, first_id: int, now_ms: int, deltas: Deltas) -> None:
    """Insert the jobs of a group under the ids from `first_id` on, ID_STRIDE apart, and count them."""
    one = group.members[0]
    shared = (one.tenant_id, one.queue_id, group.priority, one.max_failures, now_ms, one.bulk_id)
    index = (group.first_index, int(len(group.members) == 1))
    due = (one.deadline_ms, one.start_by_ms, now_ms if one.ticketed else None)
    raw.execute(_JOBS, (first_id, *shared, *index, *due, packed.costs))
    texts = (dump_labels(one.labels), one.created_by, one.trace_context, one.affinity_key)
    constants = (*texts, one.max_cost, one.redrive_of, one.params)
    statement = _RICH_INPUTS if packed.is_rich else _INPUTS
    for start, blob, elements in packed.pieces:
        raw.execute(statement, (first_id + start * ID_STRIDE, blob, elements, *constants))
    if one.labels:
        raw.execute(_LABELS, (one.tenant_id, first_id, dump_labels(one.labels), packed.costs))
    deltas.count(
        queue_id=one.queue_id,
        tenant_id=one.tenant_id,
        priority=group.priority,
        state=0,
        deadline_ms=one.deadline_ms,
        bulk_id=one.bulk_id,
        jobs=group.size,
        cost=packed.total_cost,
    )
    used = packed.input_bytes
    deltas.use(tenant_id=one.tenant_id, queue_id=one.queue_id, now_ms=now_ms, input_bytes=used)


def _identities(members: Sequence[Submission]) -> list[tuple[str | None, str | None]] | None:
    """(custom id, digest in hexadecimal) of every job; None where none has either."""
    if not any(member.custom_ids or member.input_digests for member in members):
        return None
    found: list[tuple[str | None, str | None]] = []
    for member in members:
        nothing = [None] * len(member.inputs)
        digests = [digest.hex() for digest in member.input_digests or ()] or nothing
        found.extend(zip(member.custom_ids or nothing, digests, strict=True))
    return found


def spans(bodies: Sequence[bytes]) -> list[int]:
    """Where each body lies in the blob that joins them."""
    lengths = list(map(len, bodies))
    ends = accumulate(lengths)
    return [((end - length) << LENGTH_BITS) | length for end, length in zip(ends, lengths, strict=True)]


def _pieces(bodies: Sequence[bytes]) -> list[tuple[int, int]]:
    """Cut bodies into ranges of at most BLOB_BYTES, one body at least."""
    if sum(map(len, bodies)) <= BLOB_BYTES:
        return [(0, len(bodies))]
    cuts = [0]
    size = 0
    for place, body in enumerate(bodies):
        if size + len(body) > BLOB_BYTES and place > cuts[-1]:
            cuts.append(place)
            size = 0
        size += len(body)
    return list(zip(cuts, [*cuts[1:], len(bodies)], strict=True))
