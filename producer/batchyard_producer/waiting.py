"""Long polls: all waiters of a process share their reads, their wake-ups and one slow sweep.

A waiter registers, then reads, then sleeps: whatever ends between the read and the sleep finds it registered, so no
wake-up is lost. It is woken by completion hints (`batchyard.broker.Hints`, on the listener's thread) and, where a hint
was lost, by the sweep. A hint is only a hint: the waiter reads again before it answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, Protocol

from batchyard.errors import BatchyardError, QueueFull
from batchyard.jobs import runs
from batchyard.store.base import JobView
from batchyard.telemetry import log_event

SWEEP_SECONDS = 1.0
SWEEP_IDS = 5_000
"""Ids in one query of a sweep."""
READ_IDS = 2_000
"""Ids in one read on behalf of several waiters, whose results are all in memory at once."""
READERS = 2
"""Reads of jobs under way at a time; what is asked for meanwhile gathers for the next one."""
MAX_WATCHED_IDS = 500_000
MAX_CALLERS = 20_000
"""Long polls at a time, each of which holds a connection and some 20 KB."""
LONGEST_GAP_SECONDS = 0.25
SHORTEST_GAP_SECONDS = 0.005
CALM_GAP_SECONDS = 0.04
"""The shortest where hints tell of everything that a stream waits for but its bulk's seal."""
PATIENCE = 4
"""Fruitless hints in a row after which a stream looks less often."""

Until = Literal["any", "all"]
Views = dict[int, JobView]

log = logging.getLogger(__name__)


class ReadStore(Protocol):
    """The part of the job store that is used here."""

    def get_jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool = True) -> list[JobView]: ...

    def finished_among(self, ids: Sequence[int]) -> list[int]: ...


class SharedReads:
    """Reads jobs in a thread pool, merging what several callers ask for into one query. Owned by the event loop."""

    def __init__(self, store: ReadStore, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._pool = pool
        self._under_way = 0
        self._wanted: dict[tuple[int, bool], list[tuple[Sequence[int], asyncio.Future[Views]]]] = {}

    async def jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool = True) -> Views:
        """Those of the ids that exist for this tenant."""
        future: asyncio.Future[Views] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault((tenant_id, results), []).append((ids, future))
        if self._under_way < READERS:
            self._start()
        return await future

    def _start(self) -> None:
        """Send the oldest kind of read on its way, for as many callers as fit."""
        key = next(iter(self._wanted))
        waiting = self._wanted.pop(key)
        taken, count = 0, 0
        while taken < len(waiting) and (not taken or count + len(waiting[taken][0]) <= READ_IDS):
            count += len(waiting[taken][0])
            taken += 1
        callers, rest = waiting[:taken], waiting[taken:]
        if rest:
            self._wanted[key] = rest  # behind the other kinds, so that none starves
        self._under_way += 1
        ids = list(callers[0][0]) if taken == 1 else list({number for asked, _ in callers for number in asked})
        loop = asyncio.get_running_loop()
        read = loop.run_in_executor(self._pool, self._read, ids, *key)
        read.add_done_callback(lambda done: self._give(callers, done))

    def _read(self, ids: Sequence[int], tenant_id: int, results: bool) -> Views:
        return {view.id: view for view in self._store.get_jobs(ids, tenant_id=tenant_id, results=results)}

    def _give(self, callers: list[tuple[Sequence[int], asyncio.Future[Views]]], read: asyncio.Future[Views]) -> None:
        self._under_way -= 1
        if self._wanted:
            self._start()
        error = read.exception()
        for ids, future in callers:
            if future.cancelled():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                views = read.result()
                future.set_result({number: views[number] for number in ids if number in views})


class _Waiter:
    """One caller asleep: `future` resolves when `missing` ids were named by hints, or any of them."""

    __slots__ = ("future", "missing", "until")

    def __init__(self, ids: Iterable[int], until: Until) -> None:
        self.missing = set(ids)
        self.until = until
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(self, number: int) -> None:
        self.missing.discard(number)
        if self.until == "any" or not self.missing:
            self.let_go()

    def let_go(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Waiting:
    """The waiters of one event loop, which owns all of this; only `hint` and `sweep_soon` come from other threads."""

    def __init__(
        self,
        store: ReadStore,
        *,
        reads: SharedReads,
        pool: ThreadPoolExecutor,
        max_ids: int = MAX_WATCHED_IDS,
        max_callers: int = MAX_CALLERS,
        shows_late: bool = True,
    ) -> None:
        """`shows_late`: what a hint tells of may show a moment later in a bulk's results, see `Pace`."""
        self._store = store
        self._reads = reads
        self._pool = pool
        self._max_ids = max_ids
        self._max_callers = max_callers
        self._callers = 0
        self.first_gap_seconds = SHORTEST_GAP_SECONDS if shows_late else CALM_GAP_SECONDS
        """Until a stream that was told nothing looks again."""
        self._watched: dict[int, list[_Waiter]] = {}
        self._watched_count = 0
        self._sleepers = 0
        self._streams = 0
        self._heard = 0
        self._any_hint: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._sweep_now = asyncio.Event()
        self.is_draining = False
        """Nobody waits any more: readers answer with what they know."""

    # --- life ---

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sweeper = loop.create_task(self._sweep_for_ever())

    def drain(self) -> None:
        """Let every waiter go, and let none wait from now on: the process is about to end. On the loop."""
        self.is_draining = True
        for waiters in list(self._watched.values()):
            for waiter in waiters:
                waiter.let_go()
        self._hear(())

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    # --- wake-ups ---

    def hint(self, ids: Sequence[int]) -> None:
        """Something became of these jobs. From any thread."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        watched = self._watched
        named = [number for number in ids if number in watched] if watched else []
        if named or self._streams:
            loop.call_soon_threadsafe(self._hear, named)

    def sweep_soon(self) -> None:
        """Hints may have been missed. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._sweep_now.set)

    def _hear(self, ids: Sequence[int]) -> None:
        for number in ids:
            for waiter in self._watched.get(number, ()):
                waiter.hear(number)
        self._heard += 1
        if self._any_hint is not None:
            self._any_hint.set_result(None)
            self._any_hint = None

    async def _sweep_for_ever(self) -> None:
        while True:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._sweep_now.wait()
            self._sweep_now.clear()
            if self._watched:
                try:
                    await self._sweep()
                except BatchyardError as error:  # the database is away: the next sweep may find it
                    log_event(log, "sweep_failed", level=logging.DEBUG, message=error.message)

    async def _sweep(self) -> None:
        assert self._loop is not None
        for piece in runs(list(self._watched), SWEEP_IDS):
            self._hear(await self._loop.run_in_executor(self._pool, self._store.finished_among, piece))

    # --- waiting for jobs ---

    @property
    def waiters(self) -> int:
        """Ids now waited for, and streams."""
        return self._watched_count + self._streams

    @property
    def sleepers(self) -> int:
        """Callers of `jobs` now asleep."""
        return self._sleepers

    async def jobs(
        self, ids: Sequence[int], *, tenant_id: int, seconds: float, until: Until = "all", results: bool = True
    ) -> Views:
        """The jobs, once any or all of them are terminal or the time is over; those that do not exist are left out.

        QueueFull where too many wait already.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if self._callers >= self._max_callers:
            raise QueueFull(f"{self._callers} callers wait already: poll again", retry_after_seconds=1)
        waiter = self._register(ids, until)
        self._callers += 1
        pending = ids
        views: Views = {}
        try:
            while True:
                views |= await self._reads.jobs(pending, tenant_id=tenant_id, results=results)
                pending = [number for number in ids if number in views and not views[number].state.is_terminal]
                left = deadline - loop.time()
                if not pending or left <= 0 or self.is_draining or (until == "any" and len(pending) < len(views)):
                    return views
                if not waiter.future.done():
                    waiter.missing.intersection_update(pending)
                    if waiter.missing:
                        await self._sleep(waiter, left)
                self._forget(ids, waiter)
                waiter = self._register(pending, until)
        finally:
            self._callers -= 1
            self._forget(ids, waiter)

    async def _sleep(self, waiter: _Waiter, seconds: float) -> None:
        self._sleepers += 1
        try:
            await asyncio.wait((waiter.future,), timeout=seconds)
        finally:
            self._sleepers -= 1

    def _register(self, ids: Sequence[int], until: Until) -> _Waiter:
        if self._watched_count + len(ids) > self._max_ids:
            raise QueueFull(f"{self._watched_count} jobs are waited for already: poll again", retry_after_seconds=1)
        waiter = _Waiter(ids, until)
        for number in ids:
            self._watched.setdefault(number, []).append(waiter)
        self._watched_count += len(ids)
        return waiter

    def _forget(self, ids: Sequence[int], waiter: _Waiter) -> None:
        for number in ids:
            waiters = self._watched.get(number)
            if waiters is None or waiter not in waiters:
                continue
            waiters.remove(waiter)
            self._watched_count -= 1
            if not waiters:
                del self._watched[number]

    # --- waiting for anything ---

    def pace(self) -> Pace:
        """For a reader of a stream: when to look again."""
        return Pace(self)

    async def _next_hint(self, seconds: float) -> bool:
        """Whether a hint, of whatever jobs, came within this time."""
        if self._any_hint is None:
            self._any_hint = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait((self._any_hint,), timeout=seconds)
        return bool(done)


class Pace:
    """Says when a stream that found nothing should look again; entered for the life of the stream.

    A hint makes it look at once, unless the last few hints were about other bulks: a hint names jobs, not bulks.
    Further looks follow at growing gaps, because nothing tells of a seal, and because on Postgres a flush shows only
    once it was numbered.
    """

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._gap = waiting.first_gap_seconds
        self._misses = 0
        """Hints in a row that brought nothing."""
        self._heard = 0
        self._looked_at = 0.0

    def __enter__(self) -> Pace:
        self._waiting._streams += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._waiting._streams -= 1

    def look(self) -> None:
        """A read begins now; a hint from here on is news."""
        self._heard = self._waiting._heard
        self._looked_at = asyncio.get_running_loop().time()

    def found(self) -> None:
        """The read brought something."""
        self._gap = self._waiting.first_gap_seconds
        self._misses = 0

    async def keep_apart(self, seconds: float) -> None:
        """Sleep until this long after the last look."""
        early = self._looked_at + seconds - asyncio.get_running_loop().time()
        if early > 0:
            await asyncio.sleep(early)

    async def rest(self, seconds: float) -> None:
        """Sleep until the next look is due, at most this long."""
        waiting = self._waiting
        if waiting._heard != self._heard or await waiting._next_hint(min(seconds, self._gap)):
            self._misses += 1
            self._gap = waiting.first_gap_seconds
            apart = min(SHORTEST_GAP_SECONDS * 2 ** max(0, self._misses - PATIENCE), LONGEST_GAP_SECONDS)
            await self.keep_apart(min(apart, seconds))
            return
        self._gap *= 2
        if self._gap >= SWEEP_SECONDS:
            self._gap, self._misses = SWEEP_SECONDS, 0
