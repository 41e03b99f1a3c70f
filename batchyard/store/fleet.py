"""Consumers with their leases, and the named leases of leaders."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, and_, func, or_, select

from batchyard.jobs import ClaimedJob, State
from batchyard.store.base import ConsumerInfo, Renewal
from batchyard.store.deltas import HOUR_MS, Deltas, JobRow
from batchyard.store.moves import Moves
from batchyard.store.sql import IS_RUNNING, JOB_ROW, PREEMPTED
from batchyard.store.tables import consumers, jobs, leases

_AWAY = ("gone", "dead")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
"""What consumers tell is large, and read again and again."""


class Fleet(Moves):
    """Who is there, and until when it is believed."""

    def register_consumer(
        self, *, pool: str, host: str, pid: int, device: str, capacity: str, queue_ids: Sequence[int], lease_ms: int
    ) -> int:
        """See `JobStore.register_consumer`."""
        owner = secrets.randbits(62) + 1
        with self._writing() as connection:
            now = self._database_ms(connection)
            connection.execute(
                consumers.insert().values(
                    id=owner,
                    pool=pool,
                    host=host,
                    pid=pid,
                    device=device,
                    capacity=capacity,
                    state="starting",
                    queue_ids=json.dumps(list(queue_ids)),
                    stats="{}",
                    started_at=now,
                    lease_until=now + lease_ms,
                )
            )
        return owner

    def renew(
        self,
        owner: int,
        *,
        lease_ms: int,
        state: str,
        stats: Mapping[str, Any],
        zone: str = "",
        is_preempted: bool = False,
    ) -> Renewal:
        """See `JobStore.renew`. A lease that ran out but was not reaped yet comes back to life."""
        with self._writing() as connection:
            now = self._database_ms(connection)
            mine = and_(consumers.c.id == owner, consumers.c.state.not_in(_AWAY))
            values: dict[str, Any] = {"lease_until": now + lease_ms, "state": state, "stats": json.dumps(stats)}
            if zone:
                values["zone"] = zone
            if is_preempted:
                values["preempted_at"] = func.coalesce(consumers.c.preempted_at, now)
            if connection.execute(consumers.update().where(mine).values(values)).rowcount == 0:
                return Renewal(alive=False)
            if state == "ready":
                unready = consumers.c.ready_at.is_(None)
                connection.execute(consumers.update().where(mine, unready).values(ready_at=now))
            asked = select(jobs.c.id).where(IS_RUNNING, jobs.c.owner == owner, jobs.c.cancel_requested)
            return Renewal(alive=True, cancelled=list(connection.execute(asked).scalars()))

    def note_preempted(self, owner: int) -> None:
        """See `JobStore.note_preempted`."""
        with self._writing() as connection:
            mine = and_(consumers.c.id == owner, consumers.c.state.not_in(_AWAY))
            noted = func.coalesce(consumers.c.preempted_at, self._database_ms(connection))
            connection.execute(consumers.update().where(mine).values(preempted_at=noted))

    def deregister(self, owner: int) -> None:
        """See `JobStore.deregister`."""
        deltas = Deltas()
        with self._writing() as connection:
            mine = and_(consumers.c.id == owner, consumers.c.state.not_in(_AWAY))
            now = self._database_ms(connection)
            connection.execute(consumers.update().where(mine).values(state="gone", lease_until=now))
            taken_back = select(consumers.c.preempted_at).where(consumers.c.id == owner)
            counted = PREEMPTED if connection.execute(taken_back).scalar() else {}
            held = select(*JOB_ROW).where(jobs.c.owner == owner, IS_RUNNING)
            self._requeue(connection, self._lock_jobs(connection, held), deltas=deltas, now_ms=now, **counted)
            self._record(connection, deltas)

    def release(
        self, held: Sequence[ClaimedJob], *, owner: int, preempted: bool = False, suspect: bool = False
    ) -> list[int]:
        """See `JobStore.release`."""
        counted: dict[str, Any] = {}
        if preempted:
            counted |= PREEMPTED
        if suspect:
            counted["suspect"] = True
        attempt_of = {job.id: job.attempt for job in held}
        # The sums keep planners from the index on owners: the ids are the way in.
        mine = and_(jobs.c.state + 0 == int(State.RUNNING), jobs.c.owner + 0 == owner)
        fenced = select(*JOB_ROW, jobs.c.attempt).where(self._among(jobs.c.id, sorted(attempt_of)), mine)
        deltas = Deltas()
        with self._writing() as connection:
            now = self._database_ms(connection)
            # All at once, so that they are locked in the order of their ids whatever their attempts.
            locked = connection.execute(fenced.order_by(jobs.c.id).with_for_update(of=jobs)).all()
            rows = [JobRow(*row[:-1]) for row in locked if row.attempt == attempt_of[row.id]]
            self._requeue(connection, rows, deltas=deltas, now_ms=now, **counted)
            self._record(connection, deltas)
        back = {row.id for row in rows if not row.cancel_requested}
        return [job.id for job in held if job.id in back]

    def consumers(self) -> list[ConsumerInfo]:
        """See `JobStore.consumers`."""
        recent = self.now_ms() - HOUR_MS
        present = or_(consumers.c.state.not_in(_AWAY), consumers.c.lease_until > recent)
        with self._reading() as connection:
            rows = connection.execute(select(consumers).where(present).order_by(consumers.c.started_at)).all()
        return [_consumer(row) for row in rows]

    def lead(self, name: str, *, holder: int, lease_ms: int) -> int:
        """See `JobStore.lead`."""
        with self._writing() as connection:
            now = self._database_ms(connection)
            row = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
            if row is None:
                first = self._insert(leases).values(name=name, holder=holder, until=now + lease_ms, epoch=1)
                taken = first.on_conflict_do_nothing().returning(leases.c.epoch)
                return int(connection.execute(taken).scalar_one_or_none() or 0)
            if row.holder != holder and row.until > now:
                return 0
            epoch: int = row.epoch if row.holder == holder else row.epoch + 1
            kept = leases.update().where(leases.c.name == name)
            connection.execute(kept.values(holder=holder, until=now + lease_ms, epoch=epoch))
            return epoch

    def resign(self, name: str, *, holder: int) -> None:
        """See `JobStore.resign`."""
        mine = and_(leases.c.name == name, leases.c.holder == holder)
        with self._writing() as connection:
            connection.execute(leases.update().where(mine).values(until=0))


def _consumer(row: Row[Any]) -> ConsumerInfo:
    return ConsumerInfo(
        id=row.id,
        pool=row.pool,
        host=row.host,
        pid=row.pid,
        device=row.device,
        capacity=row.capacity,
        state=row.state,
        queue_ids=tuple(json.loads(row.queue_ids)),
        stats=_decode(row.stats),
        started_at_ms=row.started_at,
        ready_at_ms=row.ready_at,
        lease_until_ms=row.lease_until,
        zone=row.zone,
        preempted_at_ms=row.preempted_at,
    )
