"""What each submission of a call becomes: new jobs, a replay, or an error; inside SQLite's one write transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from batchyard.jobs import ID_STRIDE, Accepted, Submission
from batchyard.store.bulks import idempotency_conflict, sealed_bulk, unknown_bulk
from batchyard.store.deltas import Deltas
from batchyard.store.payloads import missing_payload
from batchyard.store.sqlite.inserts import Group, Packed, insert_group, like, pack
from batchyard.store.sqlite.references import name_webhooks, named_payloads, refer

encode = msgspec.json.encode

Key = tuple[int, int, str]
"""Tenant, bulk (0 outside bulks) and idempotency key."""

_KEYS = """
SELECT i.tenant_id, i.bulk_id, i.key, i.digest, i.first_id, i.count, i.created_at
FROM json_each(?) e CROSS JOIN idempotency i
    ON i.tenant_id = e.value ->> 0 AND i.bulk_id = e.value ->> 1 AND i.key = e.value ->> 2
"""
_NEW_KEYS = """
INSERT INTO idempotency (tenant_id, bulk_id, key, digest, first_id, count, created_at)
SELECT value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3), value ->> 4, value ->> 5, ?2 FROM json_each(?1)
"""
_BULKS = """
SELECT id, tenant_id, jobs, sealed_at IS NOT NULL OR cancel_requested, paused
FROM bulks WHERE id IN (SELECT value FROM json_each(?))
"""
_GROW = "UPDATE bulks SET jobs = ? WHERE id = ?"
_CHUNK = "INSERT INTO bulk_chunks (bulk_id, first_index, first_id, count) VALUES (?, ?, ?, ?)"


class KnownKey(NamedTuple):
    digest: bytes
    first_id: int
    jobs: int
    created_at: int


class OpenBulk:
    """A bulk as this transaction sees it; `jobs` grows with every chunk admitted."""

    __slots__ = ("closed", "jobs", "paused", "tenant_id")

    def __init__(self, tenant_id: int, jobs: int, closed: int, paused: int) -> None:
        self.tenant_id = tenant_id
        self.jobs = jobs
        self.closed = bool(closed)
        self.paused = bool(paused)


def pack_large(submissions: Sequence[Submission]) -> dict[int, Packed]:
    """Those that will be inserted by themselves, packed, by their places: to be called before the transaction."""
    return {place: pack([one]) for place, one in enumerate(submissions) if like(one) is None}


def submit(
    raw: Any,
    submissions: Sequence[Submission],
    packed: Mapping[int, Packed],
    *,
    now_ms: int,
    take_ids: Callable[[int], range],
    deltas: Deltas,
) -> list[Accepted | Exception]:
    """Insert what can be taken and say, in order, what each submission became; `packed` is of `pack_large`."""
    answers: list[Accepted | Exception | None] = [None] * len(submissions)
    known = _known_keys(raw, submissions)
    bulks = _open_bulks(raw, submissions)
    payloads = named_payloads(raw, submissions)
    tenant_of_payload = {number: payload.tenant_id for number, payload in payloads.items()}
    first_with: dict[Key, int] = {}
    groups: dict[object, list[int]] = {}
    places: dict[int, int] = {}
    for place, submission in enumerate(submissions):
        key = _key(submission)
        if key is not None and key in known:
            answers[place] = _replay(submission, known[key])
        elif key is not None and key in first_with:
            if submissions[first_with[key]].idempotency_digest != submission.idempotency_digest:
                answers[place] = idempotency_conflict(key[2])
        else:
            refusal = _refusal(submission, bulks, tenant_of_payload)
            if refusal is not None:
                answers[place] = refusal
                continue
            if key is not None:
                first_with[key] = place
            if submission.bulk_id is not None:
                places[place] = bulks[submission.bulk_id].jobs
                bulks[submission.bulk_id].jobs += len(submission.inputs)
            groups.setdefault(like(submission) or place, []).append(place)
    first_ids = _insert(
        raw, submissions, groups, places, bulks, packed=packed, now_ms=now_ms, take_ids=take_ids, deltas=deltas
    )
    _remember_keys(raw, submissions, first_with, first_ids, now_ms=now_ms)
    if payloads:
        refer(raw, submissions, first_ids, payloads, now_ms=now_ms, deltas=deltas)
    name_webhooks(raw, submissions, first_ids)
    for place, first_id in first_ids.items():
        answers[place] = _accepted(first_id, len(submissions[place].inputs), now_ms)
    return [answers[p] or _second(submissions[p], answers, first_with) for p in range(len(submissions))]


def _insert(
    raw: Any,
    submissions: Sequence[Submission],
    groups: dict[object, list[int]],
    indexes: dict[int, int],
    bulks: dict[int, OpenBulk],
    *,
    packed: Mapping[int, Packed],
    now_ms: int,
    take_ids: Callable[[int], range],
    deltas: Deltas,
) -> dict[int, int]:
    """Insert the groups; returns the first id of each admitted submission by its place."""
    first_ids: dict[int, int] = {}
    for members in groups.values():
        one = submissions[members[0]]
        bulk = None if one.bulk_id is None else bulks[one.bulk_id]
        held = bulk is not None and bulk.paused
        group = Group(
            members=[submissions[place] for place in members],
            priority=-1 - one.priority if held else one.priority,
            first_index=indexes.get(members[0], 0),
        )
        following = take_ids(group.size)[0]
        ready = packed.get(members[0]) or pack(group.members)
        insert_group(raw, group, ready, first_id=following, now_ms=now_ms, deltas=deltas)
        if bulk is not None:
            raw.execute(_CHUNK, (one.bulk_id, group.first_index, following, group.size))
            raw.execute(_GROW, (bulk.jobs, one.bulk_id))
        for place in members:
            first_ids[place] = following
            following += len(submissions[place].inputs) * ID_STRIDE
    return first_ids


def _key(submission: Submission) -> Key | None:
    if submission.idempotency_key is None:
        return None
    return submission.tenant_id, submission.bulk_id or 0, submission.idempotency_key


def _known_keys(raw: Any, submissions: Sequence[Submission]) -> dict[Key, KnownKey]:
    keys = [key for submission in submissions if (key := _key(submission)) is not None]
    if not keys:
        return {}
    rows = raw.execute(_KEYS, (encode(keys).decode(),)).fetchall()
    return {(row[0], row[1], row[2]): KnownKey(*row[3:]) for row in rows}


def _open_bulks(raw: Any, submissions: Sequence[Submission]) -> dict[int, OpenBulk]:
    ids = sorted({submission.bulk_id for submission in submissions if submission.bulk_id is not None})
    if not ids:
        return {}
    return {row[0]: OpenBulk(*row[1:]) for row in raw.execute(_BULKS, (encode(ids).decode(),))}


def _refusal(
    submission: Submission, bulks: dict[int, OpenBulk], tenant_of_payload: Mapping[int, int]
) -> Exception | None:
    if submission.bulk_id is not None:
        bulk = bulks.get(submission.bulk_id)
        if bulk is None or bulk.tenant_id != submission.tenant_id:
            return unknown_bulk()
        if bulk.closed:
            return sealed_bulk()
    return missing_payload(submission, tenant_of_payload)


def _replay(submission: Submission, known: KnownKey) -> Accepted | Exception:
    if known.jobs == 0 or known.digest != (submission.idempotency_digest or b""):
        return idempotency_conflict(submission.idempotency_key or "")
    return _accepted(known.first_id, known.jobs, known.created_at, replayed=True)


def _second(
    submission: Submission, answers: Sequence[Accepted | Exception | None], first_with: dict[Key, int]
) -> Accepted | Exception:
    """The answer to a submission whose key is new in this very call: the first one's jobs."""
    key = _key(submission)
    assert key is not None
    first = answers[first_with[key]]
    assert isinstance(first, Accepted)
    return Accepted(ids=first.ids, created_at_ms=first.created_at_ms, replayed=True)


def _remember_keys(
    raw: Any,
    submissions: Sequence[Submission],
    first_with: dict[Key, int],
    first_ids: dict[int, int],
    *,
    now_ms: int,
) -> None:
    if not first_with:
        return
    rows = [
        (*key, (submissions[place].idempotency_digest or b"").hex(), first_ids[place], len(submissions[place].inputs))
        for key, place in first_with.items()
    ]
    raw.execute(_NEW_KEYS, (encode(rows).decode(), now_ms))


def _accepted(first_id: int, count: int, created_at_ms: int, *, replayed: bool = False) -> Accepted:
    ids = range(first_id, first_id + count * ID_STRIDE, ID_STRIDE)
    return Accepted(ids=ids, created_at_ms=created_at_ms, replayed=replayed)
