"""Endpoints of webhooks: the small table that whoever ends a job looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from batchyard.errors import Conflict, NotFound
from batchyard.jobs import format_id
from batchyard.store.base import Webhook
from batchyard.store.sql import SqlStore
from batchyard.store.tables import webhook_deliveries, webhooks
from batchyard.webhooks import new_secret, pack_events, unpack_events

MAX_WEBHOOKS = 100
"""Endpoints of one tenant: whoever ends a job, or delivers, looks at all of them."""


DELETE_STEP = 2_000
"""Deliveries looked at in one transaction when their endpoint is deleted."""


class Webhooks(SqlStore):
    """What their tenants do with them."""

    def create_webhook(self, *, tenant_id: int, url: str, events: Sequence[str], description: str) -> Webhook:
        """See `JobStore.create_webhook`."""
        if len(self.webhooks(tenant_id=tenant_id)) >= MAX_WEBHOOKS:
            raise Conflict(f"a tenant has at most {MAX_WEBHOOKS} webhook endpoints: delete one first")
        made = self._add_webhook(tenant_id, url=url, events=pack_events(events), description=description)
        with self._reading() as connection:
            return self._webhook(connection, made, tenant_id=tenant_id)

    def webhooks(self, *, tenant_id: int | None = None) -> list[Webhook]:
        """See `JobStore.webhooks`."""
        found = select(webhooks).order_by(webhooks.c.id)
        if tenant_id is not None:
            found = found.where(webhooks.c.tenant_id == tenant_id)
        with self._reading() as connection:
            rows = connection.execute(found).all()
        return [_record(row, now_ms=self.now_ms()) for row in rows]

    def rotate_webhook(self, webhook_id: int, *, tenant_id: int, overlap_ms: int) -> Webhook:
        """See `JobStore.rotate_webhook`."""
        until = self.now_ms() + overlap_ms
        former = {"former_secret": webhooks.c.secret, "former_until": until}
        return self._change_webhook(webhook_id, tenant_id=tenant_id, secret=new_secret(), **former)

    def enable_webhook(self, webhook_id: int, *, tenant_id: int) -> Webhook:
        """See `JobStore.enable_webhook`."""
        return self._change_webhook(webhook_id, tenant_id=tenant_id, disabled_at=None, disabled_because=None)

    def disable_webhook(self, webhook_id: int, *, tenant_id: int, because: str) -> Webhook:
        """See `JobStore.disable_webhook`."""
        disabled = {"disabled_at": self.now_ms(), "disabled_because": because}
        return self._change_webhook(webhook_id, tenant_id=tenant_id, **disabled)

    def delete_webhook(self, webhook_id: int, *, tenant_id: int) -> None:
        """See `JobStore.delete_webhook`."""
        with self._writing() as connection:
            if self._webhook(connection, webhook_id, tenant_id=tenant_id).url is None:
                raise Conflict("this endpoint is of the URLs that jobs and bulks name themselves: disable it instead")
            connection.execute(webhooks.delete().where(webhooks.c.id == webhook_id))
        # Nothing is sent any more. There may be millions, so they go in steps; what a crash leaves goes with its jobs.
        after: int | None = 0
        while after is not None:
            after = self._delete_deliveries(webhook_id, tenant_id=tenant_id, after=after)

    # --- within the store ---

    def _delete_deliveries(self, webhook_id: int, *, tenant_id: int, after: int) -> int | None:
        """Those of an endpoint among the tenant's next ones; up to which that was, None at the end."""
        column = webhook_deliveries.c
        window = select(column.id, column.webhook_id).where(column.tenant_id == tenant_id, column.id > after)
        with self._writing() as connection:
            rows = connection.execute(window.order_by(column.id).limit(DELETE_STEP)).all()
            mine = [row.id for row in rows if row.webhook_id == webhook_id]
            if mine:
                connection.execute(webhook_deliveries.delete().where(self._among(column.id, mine)))
        return rows[-1].id if len(rows) == DELETE_STEP else None

    def _expect_webhooks(self, tenant_ids: Iterable[int]) -> None:
        """Make sure of the endpoint of each tenant for the URLs that its jobs and bulks name, before they are
        submitted: it is never deleted."""
        wanted = set(tenant_ids)
        if not wanted:
            return
        named = select(webhooks.c.tenant_id).where(webhooks.c.url.is_(None), webhooks.c.tenant_id.in_(wanted))
        with self._reading() as connection:
            known = set(connection.execute(named).scalars())
        for tenant_id in sorted(wanted - known):
            self._add_webhook(tenant_id, url=None, events=0, description="URLs that jobs and bulks name")

    def _add_webhook(self, tenant_id: int, *, url: str | None, events: int, description: str) -> int:
        """One without a URL is added where the tenant has none."""
        now = self.now_ms()
        webhook_id = self._take_ids(1, now_ms=now)[0]
        insert = self._insert(webhooks).values(
            id=webhook_id,
            tenant_id=tenant_id,
            url=url,
            events=events,
            description=description,
            secret=new_secret(),
            created_at=now,
        )
        with self._writing() as connection:
            connection.execute(insert.on_conflict_do_nothing())
        return webhook_id

    def _change_webhook(self, webhook_id: int, *, tenant_id: int, **values: object) -> Webhook:
        mine = and_(webhooks.c.id == webhook_id, webhooks.c.tenant_id == tenant_id)
        with self._writing() as connection:
            connection.execute(webhooks.update().where(mine).values(values))
            return self._webhook(connection, webhook_id, tenant_id=tenant_id)

    def _webhook(self, connection: Connection, webhook_id: int, *, tenant_id: int) -> Webhook:
        mine = and_(webhooks.c.id == webhook_id, webhooks.c.tenant_id == tenant_id)
        row = connection.execute(select(webhooks).where(mine)).one_or_none()
        if row is None:
            raise NotFound(f"there is no webhook endpoint {format_id(webhook_id)}")
        return _record(row, now_ms=self.now_ms())


def valid_secrets(row: Row[Any], *, now_ms: int) -> tuple[str, ...]:
    """Of an endpoint's row, the newest first."""
    if row.former_secret is None or row.former_until <= now_ms:
        return (row.secret,)
    return row.secret, row.former_secret


def _record(row: Row[Any], *, now_ms: int) -> Webhook:
    return Webhook(
        id=row.id,
        tenant_id=row.tenant_id,
        url=row.url,
        events=unpack_events(row.events),
        description=row.description,
        created_at_ms=row.created_at,
        disabled_at_ms=row.disabled_at,
        disabled_because=row.disabled_because,
        secrets=valid_secrets(row, now_ms=now_ms),
    )
