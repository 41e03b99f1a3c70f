"""Claims and outcomes on SQLite: a fixed number of statements, each fetching at most one row, however many the jobs.

Why see `inserts`. Every statement finds jobs by their primary key: `+column` and `state + 0` keep the planner
from partial indexes, which it would prefer on tables that were never analysed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import accumulate, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard.store.deltas import Deltas
from batchyard.store.sqlite.inserts import LENGTH_BITS, spans
from batchyard.store.views import ERROR, dump_error

encode = msgspec.json.encode
_decode: Callable[[str], list[Any]] = msgspec.json.Decoder(list[int | None]).decode

LARGE_BODY = 64 * 1024
"""Bodies from this size on are fetched one by one: gathered, a thousand of them would fill the memory."""

PERMIT = """
SELECT (SELECT lease_until FROM consumers WHERE id = ?1 AND state NOT IN ('gone', 'dead')),
    (SELECT json_group_array(id) FROM queues WHERE paused),
    (SELECT json_group_array(id) FROM bulks WHERE sweep > 0 AND (paused OR cancel_requested))
"""

# `?4` are the bulks that may not be claimed from: no bulk is in an empty list, and the test costs nothing then.
_CANDIDATES = f"""
SELECT json_group_array(id), json_group_array(attempt + 1), json_group_array(tenant_id), json_group_array(priority),
    json_group_array(cost_estimate), json_group_array(deadline), json_group_array(bulk_id), json_group_array(failures),
    json_group_array(max_failures), json_group_array(suspect), json_group_array(created_at),
    json_group_array(length(body)), CAST(group_concat(body, '') FILTER (WHERE length(body) < {LARGE_BODY}) AS BLOB),
    max(params IS NOT NULL)
FROM (
    SELECT j.*, i.body, i.params
    FROM json_each(?1) e CROSS JOIN jobs j ON j.id = e.value CROSS JOIN job_inputs i ON i.job_id = j.id
    WHERE j.queue_id = ?2 AND j.state + 0 = 0 AND j.priority + 0 >= 0 AND (j.deadline IS NULL OR j.deadline > ?3)
        AND (?4 = '[]' OR j.bulk_id IS NULL OR j.bulk_id NOT IN (SELECT value FROM json_each(?4)))
)
"""

_LARGE = "SELECT job_id, body FROM job_inputs WHERE job_id IN (SELECT value FROM json_each(?))"

_PARAMS = """
SELECT json_group_array(coalesce(length(params), -1)), CAST(group_concat(coalesce(params, x''), '') AS BLOB)
FROM (
    SELECT i.params FROM json_each(?1) e CROSS JOIN job_inputs i ON i.job_id = e.value ORDER BY e.key
)
"""

_CLAIM = """
UPDATE jobs SET state = 1, attempt = attempt + 1, owner = ?1, started_at = ?2
WHERE id IN (SELECT value FROM json_each(?3))
"""

_FENCE = "id IN (SELECT value FROM json_each(?3)) AND state + 0 = 1 AND attempt = ?4 AND +owner = ?5"
_SUCCEED = f"UPDATE jobs SET state = ?1, finished_at = ?2 WHERE {_FENCE} AND cancel_requested = 0"
_FAIL = f"UPDATE jobs SET state = ?1, finished_at = ?2, failures = failures + 1 WHERE {_FENCE} AND cancel_requested = 0"
_CANCEL = f"UPDATE jobs SET state = ?1, finished_at = ?2 WHERE {_FENCE}"
_WAIT = """
UPDATE jobs SET state = ?1, not_before = ?2 + due.delay, failures = failures + 1
FROM (SELECT value ->> 0 AS id, value ->> 1 AS delay FROM json_each(?3)) due
WHERE jobs.id = due.id AND state + 0 = 1 AND attempt = ?4 AND +owner = ?5 AND cancel_requested = 0
"""
_UPDATES = {State.SUCCEEDED: _SUCCEED, State.FAILED: _FAIL, State.CANCELLED: _CANCEL, State.WAITING: _WAIT}

_MASK = (1 << LENGTH_BITS) - 1
_RESULTS = f"""
INSERT INTO job_results (job_id, format, cost, device_us, attempt, completed_by, body)
SELECT value ->> 0, ?1, value ->> 2, value ->> 3, ?3, ?4,
    substr(?2, ((value ->> 1) >> {LENGTH_BITS}) + 1, (value ->> 1) & {_MASK})
FROM jsonb_each(?5)
"""
# Where an earlier attempt may have left its error; what it had of the device stays counted.
_RESULTS_AGAIN = f"""{_RESULTS} WHERE true
ON CONFLICT (job_id) DO UPDATE SET format = excluded.format, cost = excluded.cost,
    device_us = device_us + excluded.device_us, attempt = excluded.attempt, completed_by = excluded.completed_by,
    body = excluded.body
"""

STANDING = """
SELECT json_group_array(json_array(id, state, attempt, owner, cancel_requested))
FROM jobs WHERE id IN (SELECT value FROM json_each(?))
"""


LISTENING = "SELECT json_group_array(DISTINCT tenant_id) FROM webhooks WHERE disabled_at IS NULL"
"""Tenants with a webhook."""


class Candidates(NamedTuple):
    """Columns of claimable jobs, in the order of the tickets."""

    ids: list[int]
    attempts: list[int]
    tenants: list[int]
    priorities: list[int]
    costs: list[int]
    deadlines: list[int | None]
    bulks: list[int | None]
    failures: list[int]
    max_failures: list[int]
    suspects: list[int]
    created: list[int]
    lengths: list[int]


def claim_queue(
    raw: Any, queue_id: int, ids: Sequence[int], *, owner: int, now_ms: int, held_bulks: str, deltas: Deltas
) -> Callable[[], list[ClaimedJob]] | None:
    """Claim those of `ids` that may be claimed; `held_bulks` is a JSON array. `ids` must not repeat.

    Returns what builds the jobs, for after the commit: other writers need not wait for that.
    """
    row = raw.execute(_CANDIDATES, (encode(ids).decode(), queue_id, now_ms, held_bulks)).fetchone()
    found = Candidates(*map(_decode, row[:12]))
    if not found.ids:
        return None
    large = _large(raw, found)
    params = raw.execute(_PARAMS, (row[0],)).fetchone() if row[13] else None
    raw.execute(_CLAIM, (owner, now_ms, row[0]))
    _count_claimed(found, queue_id, deltas)
    return partial(_build, queue_id, found, row[12] or b"", large, params)


def _build(
    queue_id: int, found: Candidates, joined: bytes, large: dict[int, bytes], params: tuple[str, bytes] | None
) -> list[ClaimedJob]:
    return list(
        map(
            ClaimedJob,
            found.ids,
            found.attempts,
            repeat(queue_id),
            found.tenants,
            found.priorities,
            found.costs,
            found.deadlines,
            found.bulks,
            found.failures,
            found.max_failures,
            map(bool, found.suspects),
            found.created,
            _bodies(found, joined, large),
            repeat(None) if params is None else _params(*params),
        )
    )


def _large(raw: Any, found: Candidates) -> dict[int, bytes]:
    """The bodies that were not gathered."""
    if max(found.lengths) < LARGE_BODY:
        return {}
    ids = [job_id for job_id, length in zip(found.ids, found.lengths, strict=True) if length >= LARGE_BODY]
    return dict(raw.execute(_LARGE, (encode(ids).decode(),)))


def _bodies(found: Candidates, joined: bytes, large: dict[int, bytes]) -> Iterable[bytes]:
    """The body of each job in turn."""
    if not large:
        return cut(joined, found.lengths)
    small = iter(cut(joined, [length for length in found.lengths if length < LARGE_BODY]))
    return [large[job_id] if job_id in large else next(small) for job_id in found.ids]


def _params(lengths: str, joined: bytes | None) -> list[bytes | None]:
    """The params of jobs, equal ones as one object."""
    sizes = _decode(lengths)
    pieces = cut(joined or b"", [max(0, size) for size in sizes])
    seen: dict[bytes, bytes] = {}
    return [None if size < 0 else seen.setdefault(piece, piece) for size, piece in zip(sizes, pieces, strict=True)]


def cut(joined: bytes, lengths: Sequence[int]) -> list[bytes]:
    """The pieces of which `joined` was put together."""
    ends = accumulate(lengths)
    return [joined[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _count_claimed(found: Candidates, queue_id: int, deltas: Deltas) -> None:
    lines = zip(found.tenants, found.priorities, found.deadlines, found.bulks, strict=True)
    for line, (count, cost) in tally(zip(lines, found.costs, strict=True)).items():
        tenant_id, priority, deadline_ms, bulk_id = line
        for state, sign in ((State.QUEUED, -1), (State.RUNNING, 1)):
            deltas.count(
                queue_id=queue_id,
                tenant_id=tenant_id,
                priority=priority,
                state=int(state),
                deadline_ms=deadline_ms,
                bulk_id=bulk_id,
                jobs=sign * count,
                cost=sign * cost,
            )


def tally(keyed: Iterable[tuple[Any, int]]) -> dict[Any, tuple[int, int]]:
    """For every key how often it comes, and the sum of its numbers."""
    numbers: defaultdict[Any, list[int]] = defaultdict(list)
    for key, number in keyed:
        numbers[key].append(number)
    return {key: (len(each), sum(each)) for key, each in numbers.items()}


# --- outcomes ---


class Moved(NamedTuple):
    """Outcomes that one statement writes: rows of equal state and attempt, as JSON."""

    state: State
    attempt: int
    rows: str
    size: int


def pack_states(outcomes: Sequence[Outcome]) -> list[Moved]:
    """What `write_states` binds."""
    groups: defaultdict[tuple[State, int], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.state, outcome.job.attempt].append(outcome)
    packed: list[Moved] = []
    for (state, attempt), members in groups.items():
        if state is State.WAITING:
            rows: object = [(outcome.job.id, outcome.retry_in_ms) for outcome in members]
        else:
            rows = [outcome.job.id for outcome in members]
        packed.append(Moved(state, attempt, encode(rows).decode(), len(members)))
    return packed


def write_states(raw: Any, moved: Sequence[Moved], *, owner: int, now_ms: int) -> bool:
    """Move rows; False, with some of them perhaps moved, where a fence or a cancellation stood against any of them."""
    for state, attempt, rows, size in moved:
        if raw.execute(_UPDATES[state], (int(state), now_ms, rows, attempt, owner)).rowcount != size:
            return False
    return True


def sort_out(raw: Any, outcomes: Sequence[Outcome], *, owner: int) -> tuple[list[Outcome], set[int]]:
    """What may still be written, cancelled jobs as such, and the ids of what this owner has written before."""
    ids = sorted({outcome.job.id for outcome in outcomes})
    (packed,) = raw.execute(STANDING, (encode(ids).decode(),)).fetchone()
    standing = {row[0]: row[1:] for row in msgspec.json.decode(packed)}
    writable: dict[int, Outcome] = {}
    written: set[int] = set()
    for outcome in outcomes:
        job_id = outcome.job.id
        state, attempt, holder, cancel_requested = standing.get(job_id, (None, None, None, None))
        if job_id in writable or (attempt, holder) != (outcome.job.attempt, owner):
            continue
        if state == State.RUNNING:
            gone = Outcome(outcome.job, State.CANCELLED, device_us=outcome.device_us)
            writable[job_id] = gone if cancel_requested else outcome
        elif state in {outcome.state, State.CANCELLED}:
            written.add(job_id)
    return list(writable.values()), written


def pack_results(outcomes: Sequence[Outcome], *, owner: int) -> list[tuple[str, tuple[object, ...]]]:
    """The statements, with what they bind, that insert the result rows of outcomes; a retry's error is replaced by what
    follows it. Made before the transaction begins: other writers need not wait for that."""
    groups: defaultdict[tuple[int, int, bool], list[tuple[Outcome, bytes]]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.state is State.SUCCEEDED:
            format_, body = outcome.format, outcome.body or b""
        elif outcome.state is State.CANCELLED:
            continue
        else:
            format_, body = ERROR, dump_error(outcome.error)
        groups[format_, outcome.job.attempt, outcome.job.failures > 0].append((outcome, body))
    packed: list[tuple[str, tuple[object, ...]]] = []
    for (format_, attempt, replaces), members in groups.items():
        bodies = list(map(itemgetter(1), members))
        rows = [
            (outcome.job.id, span, outcome.cost, outcome.device_us)
            for (outcome, _), span in zip(members, spans(bodies), strict=True)
        ]
        statement = _RESULTS_AGAIN if replaces else _RESULTS
        packed.append((statement, (format_, b"".join(bodies), attempt, owner, encode(rows).decode())))
    return packed


def ended(outcomes: Sequence[Outcome], tenants: Collection[int]) -> list[int]:
    """The jobs of these tenants that outcomes end."""
    return [o.job.id for o in outcomes if o.state.is_terminal and o.job.tenant_id in tenants]


def count_outcomes(outcomes: Sequence[Outcome], *, now_ms: int, deltas: Deltas) -> None:
    """The deltas, usage and flushes of outcomes that were written."""
    lines: defaultdict[tuple[Any, ...], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        job = outcome.job
        key = (job.queue_id, job.tenant_id, job.priority, job.deadline_ms, job.bulk_id, outcome.state)
        lines[key].append(outcome)
    for (queue_id, tenant_id, priority, deadline_ms, bulk_id, state), members in lines.items():
        succeeded = state is State.SUCCEEDED
        estimated = sum(outcome.job.cost_estimate for outcome in members)
        exact = sum(outcome.cost for outcome in members)
        for to, sign in ((State.RUNNING, -1), (state, 1)):
            deltas.count(
                queue_id=queue_id,
                tenant_id=tenant_id,
                priority=priority,
                state=int(to),
                deadline_ms=deadline_ms,
                bulk_id=bulk_id,
                jobs=sign * len(members),
                cost=sign * estimated,
                exact_cost=exact if succeeded and sign > 0 else None,
            )
        if bulk_id is not None and state.is_terminal:
            deltas.flushed[bulk_id].extend(outcome.job.id for outcome in members)
        device_us = sum(outcome.device_us for outcome in members)
        if succeeded:
            deltas.use(
                tenant_id=tenant_id,
                queue_id=queue_id,
                now_ms=now_ms,
                jobs=len(members),
                cost=exact,
                device_us=device_us,
                result_bytes=sum(len(outcome.body or b"") for outcome in members),
            )
        elif state is State.FAILED or device_us:
            size = sum(len(dump_error(outcome.error)) for outcome in members) if state is State.FAILED else 0
            deltas.use(tenant_id=tenant_id, queue_id=queue_id, now_ms=now_ms, device_us=device_us, result_bytes=size)
