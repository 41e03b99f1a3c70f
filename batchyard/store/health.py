"""Whether the database can be worked with."""

from __future__ import annotations

import sqlalchemy as sa

from batchyard.store.sql import SqlStore
from batchyard.store.tables import counters

_PROBE = "probe"
_VERSION = sa.text("SELECT version_num FROM alembic_version")


class Health(SqlStore):
    """What readiness asks."""

    def probe(self) -> str:
        """See `JobStore.probe`."""
        now = self.now_ms()
        write = self._insert(counters).values(name=_PROBE, value=now)
        upsert = write.on_conflict_do_update(index_elements=["name"], set_={"value": now})
        with self._writing() as connection:
            connection.execute(upsert)
            return str(connection.execute(_VERSION).scalar_one())
