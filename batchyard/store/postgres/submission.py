"""Submission: any number of calls in one statement."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, TypeVar

import psycopg
from psycopg.errors import UniqueViolation

from batchyard.errors import InvalidRequest, Unavailable
from batchyard.jobs import ID_STRIDE, Accepted, Submission, deadline_bucket
from batchyard.store.bulks import idempotency_conflict, sealed_bulk, unknown_bulk
from batchyard.store.payloads import missing_payload
from batchyard.store.postgres import insertion
from batchyard.store.postgres.arrays import byteas, int8s, optional_byteas, optional_int8s, optional_texts
from batchyard.store.postgres.session import ConnectionLost, Session
from batchyard.store.views import dump_labels

T = TypeVar("T")
_Group = Sequence[tuple[Submission, range]]
"""Submissions with the ids that their jobs get."""

_UNFIT = (psycopg.DataError, psycopg.IntegrityError, UnicodeError, OverflowError, struct.error)
"""What one submission's data may raise, here or in the server."""


class Submitting(Session):
    """Group commit."""

    def submit(self, submissions: Sequence[Submission]) -> list[Accepted | Exception]:
        """See `JobStore.submit`. One round trip where every submission is taken."""
        if not submissions:
            return []
        self._expect_webhooks(one.tenant_id for one in submissions if one.webhook is not None)
        group = self._with_ids(submissions)
        try:
            return self._submit(group)
        except _UNFIT as unfit:
            if len(submissions) == 1:
                reason, *_ = str(unfit).splitlines() or [type(unfit).__name__]
                return [InvalidRequest(f"the database cannot hold this: {reason}")]
        return [answer for member in group for answer in self.submit([member[0]])]

    def _with_ids(self, submissions: Sequence[Submission]) -> _Group:
        ids = self._take_ids(sum(len(submission.inputs) for submission in submissions), now_ms=self.now_ms())
        group = []
        start = 0
        for submission in submissions:
            end = start + len(submission.inputs)
            group.append((submission, ids[start:end]))
            start = end
        return group

    def _submit(self, group: _Group) -> list[Accepted | Exception]:
        made = self._insert_jobs(group)
        answers: list[Accepted | Exception] = [
            Accepted(ids=ids, created_at_ms=made.get(place, 0)) for place, (_, ids) in enumerate(group)
        ]
        refused = {place: member for place, member in enumerate(group) if place not in made}
        if refused:
            for place, answer in self._explain(refused).items():
                answers[place] = answer
        return answers

    def _insert_jobs(self, group: _Group) -> dict[int, int]:
        """Insert what can be taken; returns place in the group → created_at of those taken.

        Safe to send twice, because the ids are this call's own: what the first time committed is found by them.
        """
        refers = any(submission.payloads for submission, _ in group)
        hooks = [(place, sub.webhook) for place, (sub, _) in enumerate(group) if sub.webhook is not None]
        statement = insertion.submit(
            bulks=any(submission.bulk_id is not None for submission, _ in group),
            keys=any(submission.idempotency_key is not None for submission, _ in group),
            labels=any(submission.labels for submission, _ in group),
            payloads=refers,
            webhooks=bool(hooks),
        )
        values = _columns(group)
        if refers:
            values |= _references(group)
        if hooks:
            values["hook_ordinal"] = int8s([place for place, _ in hooks])
            values["hook_url"] = optional_texts([url for _, url in hooks])
        try:
            ((now_ms, places),) = self._run(statement, **values)
        except ConnectionLost:
            made = self._committed(group)
            if made:
                return made
            try:
                ((now_ms, places),) = self._run(statement, **values)
            except UniqueViolation:
                # The first one was still under way, and committed.
                return self._committed(group)
        return dict.fromkeys(places, now_ms)

    def _committed(self, group: _Group) -> dict[int, int]:
        place_of = {ids.start: place for place, (_, ids) in enumerate(group) if ids}
        rows = self._run(insertion.COMMITTED, first=int8s(place_of))
        return {place_of[first]: created_at for first, created_at in rows}

    def _explain(self, refused: dict[int, tuple[Submission, range]]) -> dict[int, Accepted | Exception]:
        """Why submissions were not taken: their key is known, their bulk is not open, or a payload is not there."""
        known = self._known_keys(refused)
        subs = [submission for submission, _ in refused.values()]
        bulk_ids = {sub.bulk_id for sub in subs if sub.bulk_id is not None}
        bulks = self._run(insertion.BULKS, bulks=int8s(sorted(bulk_ids))) if bulk_ids else []
        payload_ids = {reference.payload_id for sub in subs for reference in sub.payloads}
        payloads = self._run(insertion.PAYLOADS, payloads=int8s(sorted(payload_ids))) if payload_ids else []
        sealed = {bulk_id: (tenant_id, is_sealed) for bulk_id, tenant_id, is_sealed in bulks}
        owners = dict(payloads)
        return {
            place: _verdict(submission, known.get(place), sealed, owners) for place, (submission, _) in refused.items()
        }

    def _known_keys(self, refused: dict[int, tuple[Submission, range]]) -> dict[int, tuple[bytes, Accepted]]:
        keyed = [(place, one) for place, (one, _) in refused.items() if one.idempotency_key is not None]
        if not keyed:
            return {}
        rows = self._run(
            insertion.KNOWN_KEYS,
            ordinal=int8s([place for place, _ in keyed]),
            tenant=int8s([one.tenant_id for _, one in keyed]),
            bulk=int8s([one.bulk_id or 0 for _, one in keyed]),
            key=optional_texts([one.idempotency_key for _, one in keyed]),
        )
        return {
            place: (
                digest,
                Accepted(
                    ids=range(first, first + count * ID_STRIDE, ID_STRIDE), created_at_ms=created_at, replayed=True
                ),
            )
            for place, digest, first, count, created_at in rows
        }


def _verdict(
    submission: Submission,
    known: tuple[bytes, Accepted] | None,
    bulks: dict[int, tuple[int, bool]],
    payloads: dict[int, int],
) -> Accepted | Exception:
    """`bulks`: those that exist, with their tenants and whether they are sealed; `payloads`: likewise, with tenants."""
    if known is not None:
        digest, accepted = known
        if digest == (submission.idempotency_digest or b"") and accepted.ids:
            return accepted
        return idempotency_conflict(submission.idempotency_key or "")
    if submission.bulk_id is not None:
        tenant_id, is_sealed = bulks.get(submission.bulk_id, (None, False))
        if tenant_id != submission.tenant_id:
            return unknown_bulk()
        if is_sealed:
            return sealed_bulk()
    # Nothing found: the key was deleted, or the payload came, between the two looks.
    changed = Unavailable("what this call stands on has just changed; send it again", retry_after_seconds=1.0)
    return missing_payload(submission, payloads) or changed


def _columns(group: _Group) -> dict[str, Any]:
    """A group as the arrays that `insertion.submit` names: one column per attribute, then those of the jobs."""
    subs = [submission for submission, _ in group]
    counts = [len(sub.inputs) for sub in subs]
    return {
        "ordinal": int8s(range(len(subs))),
        "tenant": int8s([sub.tenant_id for sub in subs]),
        "queue": int8s([sub.queue_id for sub in subs]),
        "first": int8s([ids.start for _, ids in group]),
        "start": int8s(accumulate(counts[:-1], initial=0)),
        "count": int8s(counts),
        "cost": int8s([sum(sub.costs) for sub in subs]),
        "bytes": int8s([sum(map(len, sub.inputs)) for sub in subs]),
        "priority": int8s([sub.priority for sub in subs]),
        "deadline": optional_int8s([sub.deadline_ms for sub in subs]),
        "bucket": int8s([deadline_bucket(sub.deadline_ms) for sub in subs]),
        "start_by": optional_int8s([sub.start_by_ms for sub in subs]),
        "max_failures": int8s([sub.max_failures for sub in subs]),
        "ticketed": int8s([sub.ticketed for sub in subs]),
        "params": optional_byteas([sub.params for sub in subs]),
        "labels": optional_texts([dump_labels(sub.labels) for sub in subs]),
        "created_by": optional_texts([sub.created_by for sub in subs]),
        "trace": optional_texts([sub.trace_context for sub in subs]),
        "affinity": optional_texts([sub.affinity_key for sub in subs]),
        "max_cost": optional_int8s([sub.max_cost for sub in subs]),
        "redrive": optional_int8s([sub.redrive_of for sub in subs]),
        "bulk": optional_int8s([sub.bulk_id for sub in subs]),
        "bulks": int8s(sorted({sub.bulk_id for sub in subs if sub.bulk_id is not None})),
        "key": optional_texts([sub.idempotency_key for sub in subs]),
        "digest": byteas([sub.idempotency_digest or b"" for sub in subs]),
        "job_cost": int8s(chain.from_iterable(sub.costs for sub in subs)),
        "job_body": byteas(list(chain.from_iterable(sub.inputs for sub in subs))),
        "job_custom_id": optional_texts(_per_job([sub.custom_ids for sub in subs], counts)),
        "job_digest": optional_byteas(_per_job([sub.input_digests for sub in subs], counts)),
    }


def _references(group: _Group) -> dict[str, Any]:
    """What the submissions refer to, one column per attribute; and the payloads, each once."""
    uses = [(place, reference) for place, (sub, _) in enumerate(group) for reference in sub.payloads]
    return {
        "use_ordinal": int8s([place for place, _ in uses]),
        "use_index": int8s([reference.index for _, reference in uses]),
        "use_payload": int8s([reference.payload_id for _, reference in uses]),
        "payloads": int8s(sorted({reference.payload_id for _, reference in uses})),
    }


def _per_job(columns: Sequence[Sequence[T | None] | None], counts: Sequence[int]) -> list[T | None]:
    """One column of all jobs; empty where no submission has it."""
    if not any(columns):
        return []
    filled = (column or [None] * count for column, count in zip(columns, counts, strict=True))
    return list(chain.from_iterable(filled))
