"""The decisions that KEDA is told: read from the store over and over, so that every call is answered from one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from batchyard.errors import BatchyardError
from batchyard.store.base import JobStore, PoolDecision
from batchyard.store.records import followed
from batchyard.telemetry import log_event

READ_SECONDS = 0.25
"""How late a pool that gets its first replica is told of at most."""

log = logging.getLogger(__name__)


class UnknownPool(LookupError):
    """No pool is configured by this name."""


class Decisions:
    """The last decision of every pool, whoever made it. Owned by one event loop."""

    def __init__(self, store: JobStore, *, pools: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._pools = frozenset(pools)
        self._made: dict[str, PoolDecision] = {}
        self._store_ahead_seconds = 0.0
        """Of the store's clock, before this one's."""
        self._read = asyncio.Condition()
        self._is_away = False

    def known(self, pool: str) -> str:
        """The name itself; UnknownPool where no pool has it."""
        if pool not in self._pools:
            allowed = ", ".join(sorted(self._pools)) or "none is configured"
            raise UnknownPool(f'the trigger\'s metadata names the pool "{pool[:64]}"; there are: {allowed}')
        return pool

    def replicas(self, pool: str) -> int:
        """By its last decision; Unavailable where that is stale. Asks nobody: a database that is away lets it age."""
        now_ms = int((self._clock() + self._store_ahead_seconds) * 1000)
        return followed(self._made.get(pool), pool=pool, now_ms=now_ms).replicas

    async def changes(self) -> AsyncIterator[None]:
        """Now, and after every reading."""
        while True:
            yield
            async with self._read:
                await self._read.wait()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(READ_SECONDS)

    async def look(self) -> None:
        """Read once."""
        try:
            made = await asyncio.to_thread(self._store.decisions)
            now_ms = await asyncio.to_thread(self._store.now_ms)
        except BatchyardError as away:
            if not self._is_away:
                log_event(log, "decisions_not_read", level=logging.WARNING, reason=away.message)
            self._is_away = True
            return
        self._is_away = False
        self._made = {each.pool: each for each in made}
        self._store_ahead_seconds = now_ms / 1000 - self._clock()
        async with self._read:
            self._read.notify_all()
