"""The outbox of webhooks: what ended is put into it where it ends; deliveries are taken from it until they succeed.

A row is written in the transaction that makes its job terminal, once for a job and an endpoint. Nothing of it is on the
way of jobs whose tenants have no endpoint, beyond a look at the endpoints in each such transaction. A bulk's end is
nobody's transaction: of several that end its last jobs none may see that they are the last. The leader notes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
)

from batchyard.store.base import Delivery, DeliveryFilter, DeliveryState, DueDelivery
from batchyard.store.tables import BULK_COUNTS, bulks, job_webhooks, jobs, webhook_deliveries, webhooks
from batchyard.store.webhooks import Webhooks, valid_secrets
from batchyard.webhooks import FIRST_TERMINAL, Event

_OUTBOX = ("tenant_id", "webhook_id", "subject_id", "event", "url", "created_at", "due_at")
_TERMINAL = jobs.c.state >= literal_column(str(FIRST_TERMINAL))
_IS_PENDING = webhook_deliveries.c.state == literal_column("0")
_IS_ENABLED = webhooks.c.disabled_at.is_(None)
_SHOWN = select(webhook_deliveries, webhooks.c.url.label("own_url")).join(
    webhooks, webhooks.c.id == webhook_deliveries.c.webhook_id
)


class Outbox(Webhooks):
    """Into it, and out of it."""

    def __init__(self) -> None:
        super().__init__()
        # Where this round of `finish_bulks` has come to. Owned by the leader's thread; a new round starts at 0.
        self._bulks_seen = 0

    # --- in ---

    def _announce(self, connection: Connection, job_ids: Sequence[int]) -> None:
        """Put jobs that this transaction has ended into the outbox, for those who hear of them."""
        event = jobs.c.state - literal_column(str(FIRST_TERMINAL))
        named = select(job_webhooks.c.url).where(job_webhooks.c.job_id == jobs.c.id).scalar_subquery()
        told = _told(jobs.c.tenant_id, jobs.c.id, event, named, ended_at=jobs.c.finished_at)
        told = told.join_from(jobs, webhooks, webhooks.c.tenant_id == jobs.c.tenant_id)
        self._put(connection, told.where(self._among(jobs.c.id, job_ids), _TERMINAL))

    def finish_bulks(self, *, limit: int) -> int:
        """See `JobStore.finish_bulks`."""
        page = select(bulks.c.id, bulks.c.jobs).where(bulks.c.finished_at.is_(None), bulks.c.sealed_at.is_not(None))
        page = page.where(bulks.c.id > self._bulks_seen).order_by(bulks.c.id).limit(limit)
        with self._reading() as connection:
            rows = connection.execute(page).all()
            over = self._over(connection, {row.id: row.jobs for row in rows})
        self._bulks_seen = rows[-1].id if len(rows) == limit else 0
        return self._end_bulks(over) if over else 0

    def _over(self, connection: Connection, size_of: Mapping[int, int]) -> list[int]:
        """Those of sealed bulks, given with their sizes, whose jobs have all ended: that stays so."""
        sums = self._sums(BULK_COUNTS).subquery()
        ended = select(sums.c.bulk_id, func.sum(sums.c.jobs)).where(sums.c.bulk_id.in_(size_of))
        ended = ended.where(sums.c.state >= FIRST_TERMINAL).group_by(sums.c.bulk_id)
        count_of = {bulk_id: int(count) for bulk_id, count in connection.execute(ended)} if size_of else {}
        return [bulk_id for bulk_id, size in size_of.items() if count_of.get(bulk_id, 0) == size]

    def _end_bulks(self, bulk_ids: Sequence[int]) -> int:
        with self._writing() as connection:
            now = self._database_ms(connection)
            still = and_(self._among(bulks.c.id, bulk_ids), bulks.c.finished_at.is_(None))
            ended = bulks.update().where(still).values(finished_at=now).returning(bulks.c.id)
            mine = connection.execute(ended).scalars().all()
            event = literal(int(Event.BULK_FINISHED))
            told = _told(bulks.c.tenant_id, bulks.c.id, event, bulks.c.webhook, ended_at=bulks.c.finished_at)
            told = told.join_from(bulks, webhooks, webhooks.c.tenant_id == bulks.c.tenant_id)
            self._put(connection, told.where(self._among(bulks.c.id, mine)))
        return len(mine)

    def _put(self, connection: Connection, told: Select[Any]) -> None:
        put = self._insert(webhook_deliveries).from_select(list(_OUTBOX), told)
        connection.execute(put.on_conflict_do_nothing())

    # --- out ---

    def take_deliveries(
        self, *, limit: int, of_one: int, underway: Mapping[int, int], lease_ms: int
    ) -> list[DueDelivery]:
        """See `JobStore.take_deliveries`."""
        full = [webhook_id for webhook_id, count in underway.items() if count >= of_one]
        waiting = and_(
            webhook_deliveries.c.webhook_id == webhooks.c.id,
            _IS_PENDING,
            webhook_deliveries.c.due_at <= self.now_ms(),
        )
        some = select(webhooks).where(_IS_ENABLED, webhooks.c.id.not_in(full), exists().where(waiting))
        if limit <= 0 or not self._finds(some):
            return []
        taken: list[DueDelivery] = []
        with self._writing() as connection:
            now = self._database_ms(connection)
            for endpoint in connection.execute(some.order_by(func.random()).limit(limit)).all():
                room = min(limit - len(taken), of_one - underway.get(endpoint.id, 0))
                secrets = valid_secrets(endpoint, now_ms=now)
                rows = self._take_some(connection, endpoint.id, limit=room, now_ms=now, lease_ms=lease_ms)
                taken += [DueDelivery(delivery=_record(row, own_url=endpoint.url), secrets=secrets) for row in rows]
        return taken

    def _take_some(
        self, connection: Connection, webhook_id: int, *, limit: int, now_ms: int, lease_ms: int
    ) -> Sequence[Row[Any]]:
        """Begin attempts at one endpoint's; the rows as they are then."""
        due = and_(webhook_deliveries.c.webhook_id == webhook_id, _IS_PENDING, webhook_deliveries.c.due_at <= now_ms)
        first = select(webhook_deliveries.c.id).where(due).order_by(webhook_deliveries.c.due_at).limit(limit)
        ids = connection.execute(first.with_for_update(skip_locked=True)).scalars().all()
        begun = webhook_deliveries.update().where(self._among(webhook_deliveries.c.id, ids))
        values = {"attempts": webhook_deliveries.c.attempts + 1, "due_at": now_ms + lease_ms}
        return connection.execute(begun.values(values).returning(webhook_deliveries)).all()

    def end_delivery(
        self,
        delivery: Delivery,
        *,
        status: int | None,
        error: str | None,
        retry_in_ms: int | None = None,
        disables: bool = False,
    ) -> bool:
        """See `JobStore.end_delivery`. The attempt is fenced by its number and by when it counts as lost."""
        mine = and_(
            webhook_deliveries.c.id == delivery.id,
            _IS_PENDING,
            webhook_deliveries.c.attempts == delivery.attempts,
            webhook_deliveries.c.due_at == delivery.due_at_ms,
        )
        with self._writing() as connection:
            now = self._database_ms(connection)
            values: dict[str, object] = {"status": status, "error": error}
            if error is not None and retry_in_ms is not None:
                values["due_at"] = now + retry_in_ms
            else:
                to = DeliveryState.DELIVERED if error is None else DeliveryState.DEAD
                values |= {"state": int(to), "ended_at": now}
            told = connection.execute(webhook_deliveries.update().where(mine).values(values)).rowcount > 0
            if told and disables:
                one = and_(webhooks.c.id == delivery.webhook_id, webhooks.c.url.is_not(None), _IS_ENABLED)
                connection.execute(webhooks.update().where(one).values(disabled_at=now, disabled_because=error))
        return told

    # --- looking, and again ---

    def deliveries(self, wanted: DeliveryFilter, *, limit: int) -> list[Delivery]:
        """See `JobStore.deliveries`."""
        found = _SHOWN.where(_fits(wanted)).order_by(webhook_deliveries.c.id.desc()).limit(limit)
        with self._reading() as connection:
            return [_record(row, own_url=row.own_url) for row in connection.execute(found)]

    def replay_deliveries(self, wanted: DeliveryFilter, *, limit: int) -> list[int]:
        """See `JobStore.replay_deliveries`."""
        found = select(webhook_deliveries.c.id).where(_fits(wanted))
        found = found.order_by(webhook_deliveries.c.id.desc()).limit(limit).with_for_update()
        with self._writing() as connection:
            now = self._database_ms(connection)
            ids = list(connection.execute(found).scalars())
            again = {"state": int(DeliveryState.PENDING), "attempts": 0, "due_at": now, "ended_at": None}
            mine = self._among(webhook_deliveries.c.id, ids)
            connection.execute(webhook_deliveries.update().where(mine).values(again))
        return ids

    def oldest_due_delivery_ms(self) -> int | None:
        """See `JobStore.oldest_due_delivery_ms`."""
        due = and_(webhook_deliveries.c.webhook_id == webhooks.c.id, _IS_PENDING)
        first = select(func.min(webhook_deliveries.c.due_at)).where(due).scalar_subquery()
        with self._reading() as connection:
            oldest = connection.execute(select(func.min(first)).select_from(webhooks).where(_IS_ENABLED)).scalar()
        return None if oldest is None or oldest > self.now_ms() else int(oldest)


def _told(
    tenant_id: ColumnElement[int],
    subject_id: ColumnElement[int],
    event: ColumnElement[int],
    named_url: ColumnElement[str | None],
    *,
    ended_at: ColumnElement[int],
) -> Select[Any]:
    """Rows of the outbox for what ended: one for each endpoint that hears of such events, and one for the URL named."""
    is_named = webhooks.c.url.is_(None)
    chosen = webhooks.c.events.bitwise_rshift(event).bitwise_and(literal_column("1")) == literal_column("1")
    hears = or_(and_(is_named, named_url.is_not(None)), and_(webhooks.c.url.is_not(None), chosen))
    url = case((is_named, named_url))
    return select(tenant_id, webhooks.c.id, subject_id, event, url, ended_at, ended_at).where(_IS_ENABLED, hears)


def _fits(wanted: DeliveryFilter) -> ColumnElement[bool]:
    column = webhook_deliveries.c
    conditions = [column.tenant_id == wanted.tenant_id]
    equal = ((column.id, wanted.id), (column.webhook_id, wanted.webhook_id), (column.subject_id, wanted.subject_id))
    conditions += [of == value for of, value in equal if value is not None]
    if wanted.state is not None:
        conditions.append(column.state == int(wanted.state))
    if wanted.from_ms is not None:
        conditions.append(column.created_at >= wanted.from_ms)
    if wanted.before_ms is not None:
        conditions.append(column.created_at < wanted.before_ms)
    if wanted.before_id is not None:
        conditions.append(column.id < wanted.before_id)
    return and_(*conditions)


def _record(row: Row[Any], *, own_url: str | None) -> Delivery:
    return Delivery(
        id=row.id,
        tenant_id=row.tenant_id,
        webhook_id=row.webhook_id,
        subject_id=row.subject_id,
        event=Event(row.event),
        url=row.url or own_url or "",
        state=DeliveryState(row.state),
        attempts=row.attempts,
        created_at_ms=row.created_at,
        due_at_ms=row.due_at,
        ended_at_ms=row.ended_at,
        status=row.status,
        error=row.error,
    )
