"""Models with their queues, tenants and API keys: the small tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection, Row, select
from sqlalchemy.exc import IntegrityError

from batchyard.errors import Conflict, NotFound
from batchyard.jobs import Lane
from batchyard.store.base import ApiKey, ModelConfig, ModelVersion, Tenant, TenantLimits
from batchyard.store.sql import SqlStore
from batchyard.store.tables import USAGE, api_keys, model_versions, queues, tenants

_KEY = select(api_keys, tenants.c.name.label("tenant")).join(tenants, tenants.c.id == api_keys.c.tenant_id)


class Registry(SqlStore):
    """What exists beside jobs."""

    # --- models and queues ---

    def sync_models(self, configs: Sequence[ModelConfig]) -> list[ModelVersion]:
        """See `JobStore.sync_models`."""
        with self._writing() as connection:
            connection.execute(model_versions.update().where(model_versions.c.active).values(active=False))
            for config in configs:
                self._sync_model(connection, config)
        return self.models()

    def _sync_model(self, connection: Connection, config: ModelConfig) -> None:
        wanted = {
            "weight": config.weight,
            "active": True,
            "default_lane": int(config.default_lane),
            "runtime": config.runtime,
        }
        insert = self._insert(model_versions).values(
            model=config.model, version=config.version, created_at=self.now_ms(), **wanted
        )
        upsert = insert.on_conflict_do_update(index_elements=["model", "version"], set_=wanted)
        version_id = connection.execute(upsert.returning(model_versions.c.id)).scalar_one()
        lanes = [{"model_version_id": version_id, "lane": int(lane)} for lane in Lane]
        connection.execute(self._insert(queues).values(lanes).on_conflict_do_nothing())

    def models(self) -> list[ModelVersion]:
        """See `JobStore.models`."""
        with self._reading() as connection:
            versions = connection.execute(select(model_versions).order_by(model_versions.c.id)).all()
            found = connection.execute(select(queues)).all()
        by_version: dict[int, dict[Lane, int]] = {}
        paused: dict[int, set[Lane]] = {}
        for queue in found:
            by_version.setdefault(queue.model_version_id, {})[Lane(queue.lane)] = queue.id
            if queue.paused:
                paused.setdefault(queue.model_version_id, set()).add(Lane(queue.lane))
        return [_version(row, by_version.get(row.id, {}), frozenset(paused.get(row.id, ()))) for row in versions]

    def set_queue_paused(self, queue_id: int, *, paused: bool) -> None:
        """See `JobStore.set_queue_paused`."""
        with self._writing() as connection:
            changed = connection.execute(queues.update().where(queues.c.id == queue_id).values(paused=paused))
            if changed.rowcount == 0:
                raise NotFound(f"no queue {queue_id}")

    def report_version(
        self, version_id: int, *, digest: str, input_schema: Mapping[str, Any], cost_unit: str, load_seconds: float
    ) -> None:
        """See `JobStore.report_version`."""
        found = {
            "digest": digest,
            "input_schema": json.dumps(input_schema),
            "cost_unit": cost_unit,
            "load_seconds": load_seconds,
            "load_error": None,
        }
        with self._writing() as connection:
            row = connection.execute(
                select(model_versions).where(model_versions.c.id == version_id).with_for_update()
            ).one_or_none()
            if row is None:
                raise NotFound(f"no model version {version_id}")
            if row.digest not in {None, digest} and self._is_used(connection, version_id):
                raise Conflict(
                    f"{row.model}@{row.version} was used with the digest {row.digest} and now has {digest}: "
                    "a version never changes once jobs have used it; give the new one another version"
                )
            connection.execute(model_versions.update().where(model_versions.c.id == version_id).values(found))

    def _is_used(self, connection: Connection, version_id: int) -> bool:
        """Whether a queue of the version has ever taken a job: its usage rows say so, and are never deleted."""
        sums = self._sums(USAGE).subquery()
        mine = select(queues.c.id).where(queues.c.model_version_id == version_id)
        return connection.execute(select(sa.exists().where(sums.c.queue_id.in_(mine)))).scalar_one()

    def report_load_error(self, version_id: int, *, message: str) -> None:
        """See `JobStore.report_load_error`."""
        self._update_version(version_id, load_error=message)

    def report_speed(self, version_id: int, *, units_per_byte: float, seconds_per_unit: float) -> None:
        """See `JobStore.report_speed`."""
        self._update_version(version_id, units_per_byte=units_per_byte, seconds_per_unit=seconds_per_unit)

    def _update_version(self, version_id: int, **values: object) -> None:
        with self._writing() as connection:
            connection.execute(model_versions.update().where(model_versions.c.id == version_id).values(values))

    # --- tenants and keys ---

    def tenants(self) -> list[Tenant]:
        """See `JobStore.tenants`."""
        with self._reading() as connection:
            rows = connection.execute(select(tenants).order_by(tenants.c.id)).all()
        return list(map(_tenant, rows))

    def create_tenant(self, name: str, *, weight: float = 1.0) -> Tenant:
        """See `JobStore.create_tenant`."""
        insert = self._insert(tenants).values(name=name, weight=weight, created_at=self.now_ms())
        with self._writing() as connection:
            # Asked rather than tried: on Postgres a refused insert would use up an id.
            if connection.execute(select(tenants.c.id).where(tenants.c.name == name)).first() is not None:
                raise Conflict(f"there is a tenant {name!r} already")
            try:
                tenant_id = connection.execute(insert.returning(tenants.c.id)).scalar_one()
            except IntegrityError as taken:
                raise Conflict(f"there is a tenant {name!r} already") from taken
        return Tenant(id=tenant_id, name=name, weight=weight)

    def set_tenant_limits(self, name: str, limits: TenantLimits) -> Tenant:
        """See `JobStore.set_tenant_limits`."""
        mine = tenants.c.name == name
        with self._writing() as connection:
            connection.execute(tenants.update().where(mine).values(msgspec.structs.asdict(limits)))
            row = connection.execute(select(tenants).where(mine)).one_or_none()
        if row is None:
            raise NotFound(f"there is no tenant {name!r}")
        return _tenant(row)

    def create_key(
        self,
        *,
        prefix: str,
        tenant_id: int,
        name: str,
        digest: bytes,
        scopes: Sequence[str],
        expires_at_ms: int | None,
    ) -> ApiKey:
        """See `JobStore.create_key`. NotFound for an unknown tenant, Conflict where the prefix is taken."""
        with self._writing() as connection:
            if connection.execute(select(tenants.c.id).where(tenants.c.id == tenant_id)).first() is None:
                raise NotFound(f"no tenant {tenant_id}")
            times = {"created_at": self.now_ms(), "expires_at": expires_at_ms}
            return self._add_key(
                connection, prefix, tenant_id=tenant_id, name=name, digest=digest, scopes=" ".join(scopes), **times
            )

    def _add_key(self, connection: Connection, prefix: str, **values: object) -> ApiKey:
        if connection.execute(select(api_keys.c.prefix).where(api_keys.c.prefix == prefix)).first() is not None:
            raise Conflict(f"there is a key {prefix} already")
        connection.execute(api_keys.insert().values(prefix=prefix, **values))
        return _key(connection.execute(_KEY.where(api_keys.c.prefix == prefix)).one())

    def keys(self) -> list[ApiKey]:
        """See `JobStore.keys`."""
        with self._reading() as connection:
            return [_key(row) for row in connection.execute(_KEY.order_by(api_keys.c.created_at, api_keys.c.prefix))]

    def find_key(self, prefix: str) -> tuple[ApiKey, bytes] | None:
        """See `JobStore.find_key`."""
        with self._reading() as connection:
            row = connection.execute(_KEY.where(api_keys.c.prefix == prefix)).one_or_none()
        return None if row is None else (_key(row), bytes(row.digest))

    def rotate_key(
        self, prefix: str, *, successor: str, digest: bytes, overlap_ms: int, life_ms: int | None = None
    ) -> ApiKey:
        """See `JobStore.rotate_key`."""
        mine = api_keys.c.prefix == prefix
        with self._writing() as connection:
            now = self._database_ms(connection)
            row = connection.execute(select(api_keys).where(mine).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"no key {prefix}")
            if row.replaced_by is not None:
                raise Conflict(f"key {prefix} was rotated before: {row.replaced_by} took its place")
            old = _key(connection.execute(_KEY.where(mine)).one())
            fault = old.fault(now_ms=now)
            if fault is not None:
                raise Conflict(f"key {prefix} {fault}: make a new one")
            ends = now + overlap_ms if old.expires_at_ms is None else min(old.expires_at_ms, now + overlap_ms)
            connection.execute(api_keys.update().where(mine).values(expires_at=ends, replaced_by=successor))
            if life_ms is None and old.expires_at_ms is not None:
                life_ms = old.expires_at_ms - old.created_at_ms
            return self._add_key(
                connection,
                successor,
                tenant_id=old.tenant_id,
                name=old.name,
                digest=digest,
                scopes=" ".join(old.scopes),
                created_at=now,
                expires_at=None if life_ms is None else now + life_ms,
            )

    def revoke_key(self, prefix: str) -> ApiKey:
        """See `JobStore.revoke_key`."""
        mine = api_keys.c.prefix == prefix
        with self._writing() as connection:
            connection.execute(
                api_keys.update().where(mine, api_keys.c.revoked_at.is_(None)).values(revoked_at=self.now_ms())
            )
            row = connection.execute(_KEY.where(mine)).one_or_none()
        if row is None:
            raise NotFound(f"no key {prefix}")
        return _key(row)


def _version(row: Row[Any], queue_ids: dict[Lane, int], paused: frozenset[Lane]) -> ModelVersion:
    return ModelVersion(
        id=row.id,
        model=row.model,
        version=row.version,
        weight=row.weight,
        active=row.active,
        default_lane=Lane(row.default_lane),
        runtime=row.runtime,
        digest=row.digest,
        input_schema=None if row.input_schema is None else json.loads(row.input_schema),
        cost_unit=row.cost_unit,
        units_per_byte=row.units_per_byte,
        seconds_per_unit=row.seconds_per_unit,
        load_seconds=row.load_seconds,
        load_error=row.load_error,
        queue_ids=queue_ids,
        paused=paused,
    )


def _tenant(row: Row[Any]) -> Tenant:
    own = {name: getattr(row, name) for name in TenantLimits.__struct_fields__}
    return Tenant(id=row.id, name=row.name, weight=row.weight, limits=TenantLimits(**own))


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        prefix=row.prefix,
        tenant=row.tenant,
        tenant_id=row.tenant_id,
        name=row.name,
        scopes=tuple(row.scopes.split()),
        created_at_ms=row.created_at,
        expires_at_ms=row.expires_at,
        revoked_at_ms=row.revoked_at,
        replaced_by=row.replaced_by,
    )
