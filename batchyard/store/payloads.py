"""Payloads: which there are, how many jobs refer to each, and what bytes are left to be deleted.

Three rules keep a job's payload as long as the job, and everything else from staying for ever:

- A row of `payloads` exists only while its bytes do: it is made after they are safe and deleted before they are.
- Whatever else may lie in the object store is named by `payload_leftovers`: an upload from before its first byte on,
  and a payload that was given up until its bytes are surely gone. A crash in between leaves a leftover, no more.
- `payloads.jobs` is the number of the payload's rows in `job_payloads`, and moves only under a lock on its row. So a
  submission finds a payload that nobody can give up any more, or finds none and is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, bindparam, false, literal, literal_column, select

from batchyard.errors import InvalidInput, Unavailable
from batchyard.inputs import unknown_payload
from batchyard.jobs import Submission, format_id
from batchyard.store.base import Leftover, PayloadInfo
from batchyard.store.deltas import HOUR_MS, Deltas, JobRow
from batchyard.store.sql import SqlStore
from batchyard.store.tables import job_payloads, payload_leftovers, payloads

UPLOAD_MS = 24 * HOUR_MS
"""How long an upload may take; what it wrote is deleted afterwards."""
RETRY_MS = 600_000
"""After this long bytes are to be deleted once more, where nobody has said that they are gone."""

_IS_UNUSED = payloads.c.jobs == literal_column("0")


class Payloads(SqlStore):
    """What the API, consumers and the leader ask about payloads; and what the deletion of jobs means to them."""

    def expect_payload(self, payload_id: int, *, location: str) -> None:
        """See `JobStore.expect_payload`."""
        due_at = self.now_ms() + UPLOAD_MS
        with self._writing() as connection:
            connection.execute(
                payload_leftovers.insert().values(id=payload_id, location=location, due_at=due_at, expected=True)
            )

    def add_payload(self, payload: PayloadInfo) -> None:
        """See `JobStore.add_payload`."""
        own = payload_leftovers.delete().where(payload_leftovers.c.id == payload.id, payload_leftovers.c.expected)
        with self._writing() as connection:
            if connection.execute(own).rowcount == 0:
                raise Unavailable("the upload took too long and was given up: send it again", retry_after_seconds=1)
            connection.execute(
                payloads.insert().values(
                    id=payload.id,
                    tenant_id=payload.tenant_id,
                    content_type=payload.content_type,
                    size=payload.size,
                    digest=payload.digest,
                    location=payload.location,
                    created_at=self.now_ms(),
                )
            )

    def get_payloads(self, ids: Sequence[int]) -> list[PayloadInfo]:
        """See `JobStore.get_payloads`."""
        with self._reading() as connection:
            rows = connection.execute(select(payloads).where(self._among(payloads.c.id, ids))).all()
        return [
            PayloadInfo(
                id=row.id,
                tenant_id=row.tenant_id,
                content_type=row.content_type,
                size=row.size,
                digest=bytes(row.digest),
                location=row.location,
            )
            for row in rows
        ]

    def sweep_payloads(self, *, deleted: Sequence[int], uploaded_before_ms: int, limit: int) -> list[Leftover]:
        """See `JobStore.sweep_payloads`."""
        old = select(payloads.c.id).where(_IS_UNUSED, payloads.c.created_at < uploaded_before_ms)
        unused = old.order_by(payloads.c.created_at).limit(limit)
        if not deleted and not self._finds(unused, _due(self.now_ms(), limit=limit)):
            return []
        with self._writing() as connection:
            now = self._database_ms(connection)
            connection.execute(payload_leftovers.delete().where(self._among(payload_leftovers.c.id, deleted)))
            # Whoever holds such a payload's row is about to refer to it.
            locked = connection.execute(unused.with_for_update(skip_locked=True))
            self._give_up(connection, locked.scalars().all(), now_ms=now)
            rows = connection.execute(_due(now, limit=limit).with_for_update(skip_locked=True)).all()
            handed_out = self._among(payload_leftovers.c.id, [row.id for row in rows])
            again = {"due_at": now + RETRY_MS, "expected": False}
            connection.execute(payload_leftovers.update().where(handed_out).values(again))
        return [Leftover(id=row.id, location=row.location) for row in rows]

    # --- within a transaction ---

    def _release_payloads(
        self, connection: Connection, rows: Sequence[JobRow], *, deltas: Deltas, now_ms: int
    ) -> list[int]:
        """Jobs are being deleted: they refer to nothing any more. Returns the payloads that no job refers to now."""
        named = self._among(job_payloads.c.job_id, [row.id for row in rows])
        references = connection.execute(select(job_payloads).where(named)).all()
        if not references:
            return []
        connection.execute(job_payloads.delete().where(named))
        fewer = Counter(reference.payload_id for reference in references)
        locked = select(payloads).where(self._among(payloads.c.id, sorted(fewer))).order_by(payloads.c.id)
        held = connection.execute(locked.with_for_update()).all()
        less = (
            payloads.update().where(payloads.c.id == bindparam("of")).values(jobs=payloads.c.jobs - bindparam("gone"))
        )
        connection.execute(less, [{"of": payload.id, "gone": fewer[payload.id]} for payload in held])
        unused = [payload for payload in held if payload.jobs == fewer[payload.id]]
        queue_of_job = {row.id: row.queue_id for row in rows}
        queue_of = {reference.payload_id: queue_of_job[reference.job_id] for reference in references}
        for payload in unused:
            queue_id = queue_of[payload.id]
            deltas.use(tenant_id=payload.tenant_id, queue_id=queue_id, now_ms=now_ms, retired_bytes=payload.size)
        return [payload.id for payload in unused]

    def _give_up(self, connection: Connection, ids: Sequence[int], *, now_ms: int) -> None:
        """Payloads that no job refers to, locked by this transaction, become leftovers."""
        if not ids:
            return
        them = self._among(payloads.c.id, ids)
        gone = select(payloads.c.id, payloads.c.location, literal(now_ms, BigInteger()), false()).where(them)
        columns = ["id", "location", "due_at", "expected"]
        connection.execute(payload_leftovers.insert().from_select(columns, gone))
        connection.execute(payloads.delete().where(them))


def _due(now_ms: int, *, limit: int) -> Select[Any]:
    over = select(payload_leftovers).where(payload_leftovers.c.due_at <= now_ms)
    return over.order_by(payload_leftovers.c.due_at).limit(limit)


def missing_payload(submission: Submission, tenant_of: Mapping[int, int]) -> InvalidInput | None:
    """Why a submission is refused that refers to a payload which is not there, or is another tenant's."""
    for reference in submission.payloads:
        if tenant_of.get(reference.payload_id) != submission.tenant_id:
            name = format_id(reference.payload_id)
            return unknown_payload(name, pointer=reference.pointer, index=reference.index)
    return None
