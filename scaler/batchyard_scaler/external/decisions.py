"""The decisions that KEDA is told: read from the store over and over, so that every call is answered from one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence

from batchyard.errors import Unavailable
from batchyard.store.base import JobStore, PoolDecision
from batchyard.telemetry import log_event

READ_SECONDS = 0.25
"""How late a pool that gets its first replica is told of at most."""

log = logging.getLogger(__name__)


class UnknownPool(LookupError):
    """No pool is configured by this name."""


class NoDecision(LookupError):
    """There is none that may be followed: nobody has decided, or a minute ago."""


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
        """By its last decision; NoDecision where that is stale. Asks nobody: a database that is away lets it age."""
        made = self._made.get(pool)
        if made is None:
            raise NoDecision(f"nothing was decided about the pool {pool} yet: does a scaler run?")
        now_ms = self._now_ms()
        if made.is_stale(now_ms=now_ms):
            age = made.age_seconds(now_ms=now_ms)
            raise NoDecision(f"the last decision about the pool {pool} is {age:.0f} s old: does a scaler run?")
        return made.replicas

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

    def _now_ms(self) -> int:
        return int((self._clock() + self._store_ahead_seconds) * 1000)

    async def look(self) -> None:
        """Read once."""
        try:
            made = await asyncio.to_thread(self._store.decisions)
            now_ms = await asyncio.to_thread(self._store.now_ms)
        except Unavailable as away:
            if not self._is_away:
                log_event(log, "decisions_not_read", level=logging.WARNING, reason=away.message)
            self._is_away = True
            return
        self._is_away = False
        self._made = {each.pool: each for each in made}
        self._store_ahead_seconds = now_ms / 1000 - self._clock()
        async with self._read:
            self._read.notify_all()
