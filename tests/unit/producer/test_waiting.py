import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from batchyard.errors import QueueFull, Unavailable
from batchyard.jobs import State
from batchyard.store.base import JobView
from batchyard_producer import waiting as waiting_module
from batchyard_producer.waiting import CALM_GAP_SECONDS, SHORTEST_GAP_SECONDS, SharedReads, Waiting
from tests.unit.samples import job_view

pytestmark = pytest.mark.anyio


class Store:
    """Jobs by id; tenant 1 owns all of them. Counts the queries."""

    def __init__(self, *ids: int) -> None:
        self.views = {number: job_view(number) for number in ids}
        self.reads: list[list[int]] = []
        self.sweeps = 0
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def finish(self, *ids: int) -> None:
        for number in ids:
            self.views[number] = msgspec.structs.replace(self.views[number], state=State.SUCCEEDED)

    def get_jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool = True) -> list[JobView]:
        self.reads.append(list(ids))
        assert self.gate.wait(10)
        if self.away:
            raise Unavailable("the database is away")
        return [self.views[number] for number in ids if number in self.views and tenant_id == 1]

    def finished_among(self, ids: Sequence[int]) -> list[int]:
        self.sweeps += 1
        if self.away:
            raise Unavailable("the database is away")
        return [number for number in ids if self.views[number].state.is_terminal]


@asynccontextmanager
async def running(store: Store, **options: Any) -> AsyncIterator[Waiting]:
    with ThreadPoolExecutor(4) as pool:
        waiting = Waiting(store, reads=SharedReads(store, pool), pool=pool, **options)
        waiting.start(asyncio.get_running_loop())
        yield waiting
        await waiting.close()
        assert waiting.waiters == 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  what is waited for happens in other threads and tasks
            await asyncio.sleep(0.001)


async def until_waiting(waiting: Waiting, count: int) -> None:
    await until(lambda: waiting.sleepers >= count)


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "SWEEP_SECONDS", 1000.0)


@pytest.mark.usefixtures("no_sweep")
async def test_a_hint_wakes_those_who_wait_for_that_job() -> None:
    store = Store(1, 2)
    async with running(store) as waiting:
        first = asyncio.ensure_future(waiting.jobs([1], tenant_id=1, seconds=50))
        second = asyncio.ensure_future(waiting.jobs([2], tenant_id=1, seconds=50))
        await until_waiting(waiting, 2)
        store.finish(1)
        await asyncio.to_thread(waiting.hint, [1, 99])
        assert (await first)[1].state == State.SUCCEEDED
        assert not second.done()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


@pytest.mark.usefixtures("no_sweep")
async def test_a_job_that_ends_between_the_read_and_the_sleep_is_noticed() -> None:
    store = Store(1)
    async with running(store) as waiting:
        store.gate.clear()
        waiter = asyncio.ensure_future(waiting.jobs([1], tenant_id=1, seconds=50))
        await until(lambda: bool(store.reads))
        # The read has its answer, "queued", and is on its way back when the job ends.
        stale = store.views[1]
        waiting.hint([1])
        store.gate.set()
        await asyncio.sleep(0)
        store.finish(1)
        waiting.hint([1])
        assert stale.state == State.QUEUED
        assert (await waiter)[1].state == State.SUCCEEDED


@pytest.mark.usefixtures("no_sweep")
async def test_a_hint_is_only_a_hint() -> None:
    store = Store(1)
    async with running(store) as waiting:
        waiter = asyncio.ensure_future(waiting.jobs([1], tenant_id=1, seconds=50))
        await until_waiting(waiting, 1)
        waiting.hint([1])  # it only backs off for a retry
        await asyncio.sleep(0)
        await until_waiting(waiting, 1)
        assert not waiter.done()
        store.finish(1)
        waiting.hint([1])
        await waiter


@pytest.mark.usefixtures("no_sweep")
async def test_any_and_all() -> None:
    store = Store(1, 2, 3)
    async with running(store) as waiting:
        any_of = asyncio.ensure_future(waiting.jobs([1, 2, 3], tenant_id=1, seconds=50, until="any"))
        all_of = asyncio.ensure_future(waiting.jobs([1, 2, 3], tenant_id=1, seconds=50, until="all"))
        await until_waiting(waiting, 2)
        store.finish(2)
        waiting.hint([2])
        assert [view.id for view in (await any_of).values() if view.state.is_terminal] == [2]
        assert not all_of.done()
        store.finish(1, 3)
        waiting.hint([3])
        waiting.hint([1])
        assert all(view.state.is_terminal for view in (await all_of).values())
        # One read at first, and one when all three were named.
        assert len(store.reads) <= 4


async def test_a_lost_hint_costs_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "SWEEP_SECONDS", 0.02)
    store = Store(1)
    async with running(store) as waiting:
        waiter = asyncio.ensure_future(waiting.jobs([1], tenant_id=1, seconds=50))
        await until_waiting(waiting, 1)
        store.away = True
        sweeps = store.sweeps
        await until(lambda: store.sweeps >= sweeps + 2)
        store.away = False
        store.finish(1)
        assert (await asyncio.wait_for(waiter, 5))[1].state == State.SUCCEEDED


@pytest.mark.usefixtures("no_sweep")
async def test_when_the_time_is_over_the_jobs_are_answered_as_they_stand() -> None:
    async with running(Store(1)) as waiting:
        views = await waiting.jobs([1, 5], tenant_id=1, seconds=0.02)
        assert [view.state for view in views.values()] == [State.QUEUED]
        assert await waiting.jobs([5], tenant_id=1, seconds=50) == {}
        assert await waiting.jobs([1], tenant_id=2, seconds=50) == {}


@pytest.mark.usefixtures("no_sweep")
async def test_the_number_of_waiters_is_bounded() -> None:
    async with running(Store(1, 2, 3), max_ids=2) as waiting:
        waiter = asyncio.ensure_future(waiting.jobs([1, 2], tenant_id=1, seconds=50))
        await until_waiting(waiting, 1)
        with pytest.raises(QueueFull):
            await waiting.jobs([3], tenant_id=1, seconds=50)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert await waiting.jobs([3], tenant_id=1, seconds=0.01)


@pytest.mark.usefixtures("no_sweep")
async def test_beyond_so_many_callers_nobody_more_may_wait() -> None:
    async with running(Store(1, 2), max_callers=2) as waiting:
        waiters = [asyncio.ensure_future(waiting.jobs([1], tenant_id=1, seconds=50)) for _ in range(2)]
        await until_waiting(waiting, 2)
        with pytest.raises(QueueFull, match="2 callers wait already"):
            await waiting.jobs([2], tenant_id=1, seconds=50)
        waiters[0].cancel()
        await asyncio.gather(waiters[0], return_exceptions=True)
        assert await waiting.jobs([2], tenant_id=1, seconds=0.01)
        waiters[1].cancel()
        await asyncio.gather(waiters[1], return_exceptions=True)


@pytest.mark.usefixtures("no_sweep")
async def test_draining_answers_everybody_now() -> None:
    async with running(Store(1)) as waiting:
        waiter = asyncio.ensure_future(waiting.jobs([1], tenant_id=1, seconds=50))
        await until_waiting(waiting, 1)
        waiting.drain()
        assert (await asyncio.wait_for(waiter, 5))[1].state == State.QUEUED
        assert (await waiting.jobs([1], tenant_id=1, seconds=50))[1].state == State.QUEUED


async def test_reads_of_many_callers_share_a_query() -> None:
    store = Store(*range(100))
    store.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        reads = SharedReads(store, pool)
        callers = [asyncio.ensure_future(reads.jobs([number], tenant_id=1)) for number in range(100)]
        stranger = asyncio.ensure_future(reads.jobs([1], tenant_id=2))
        await until(lambda: len(store.reads) == 2)
        store.gate.set()
        answers = await asyncio.gather(*callers)
        assert [list(answer) for answer in answers] == [[number] for number in range(100)]
        assert await stranger == {}
        assert len(store.reads) <= 4


async def test_a_failed_read_fails_those_who_asked() -> None:
    store = Store(1)
    store.away = True
    with ThreadPoolExecutor(1) as pool:
        reads = SharedReads(store, pool)
        outcomes = await asyncio.gather(*(reads.jobs([1], tenant_id=1) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 5
        store.away = False
        assert list(await reads.jobs([1], tenant_id=1)) == [1]


@pytest.mark.usefixtures("no_sweep")
async def test_a_stream_looks_at_once_after_a_hint_and_patiently_without() -> None:
    loop = asyncio.get_running_loop()
    async with running(Store()) as waiting:
        with waiting.pace() as pace:
            pace.look()
            waiting.hint([1])
            await asyncio.sleep(0)
            await asyncio.wait_for(pace.rest(50), 1)
            pace.found()
            pace.look()
            resting = asyncio.ensure_future(pace.rest(50))
            await asyncio.sleep(0)
            waiting.hint([2])
            await asyncio.wait_for(resting, 1)
            began = loop.time()
            for _ in range(8):  # hints about other bulks, one after the other
                pace.look()
                waiting.hint([3])
                await pace.rest(0.05)
            assert loop.time() - began > 0.15


@pytest.mark.parametrize(("shows_late", "gap"), [(True, SHORTEST_GAP_SECONDS), (False, CALM_GAP_SECONDS)])
async def test_a_stream_that_was_told_nothing_looks_again_at_growing_gaps(shows_late: bool, gap: float) -> None:
    loop = asyncio.get_running_loop()
    async with running(Store(), shows_late=shows_late) as waiting:
        with waiting.pace() as pace:
            for times in (1, 2, 4):
                pace.look()
                began = loop.time()
                await pace.rest(50)
                assert loop.time() - began > 0.9 * times * gap
