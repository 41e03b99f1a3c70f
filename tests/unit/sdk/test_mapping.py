"""Maps against a bulk in memory: everything arrives once, whatever breaks."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import pytest

from batchyard.aclient import AsyncClient
from batchyard.client import Client, Result, Results
from batchyard.errors import (
    Conflict,
    ConnectionFailed,
    Gone,
    InvalidInput,
    JobFailed,
    JobRetired,
    QueueFull,
    Unavailable,
)
from batchyard.sdk.async_mapping import AsyncFeeder
from batchyard.sdk.reading import Reader
from tests.unit.sdk.fake_api import AsyncFakeApi, FakeApi


def client_of(api: FakeApi) -> Client:
    client = Client("http://127.0.0.1:1")
    client._transport.close()
    client._transport = api
    return client


def run(
    api: FakeApi,
    inputs: Iterable[Any],
    *,
    errors: Literal["raise", "yield"] = "yield",
    **options: Any,
) -> Results:
    return client_of(api).map("echo", inputs, errors=errors, **options)


def read(api: FakeApi, inputs: Iterable[Any], *, driver: str, readers: list[Reader], **options: Any) -> list[Result]:
    """All results, by a thread or by a task; `readers` has the reader meanwhile."""
    if driver == "asyncio":
        return asyncio.run(_aread(api, inputs, readers, options))
    results = run(api, inputs, **options)
    readers.append(results._flow.reader)
    return list(results)


async def _aread(api: FakeApi, inputs: Iterable[Any], readers: list[Reader], options: dict[str, Any]) -> list[Result]:
    async with AsyncClient("http://127.0.0.1:1") as client:
        await client._transport.close()
        client._transport = AsyncFakeApi(api)  # type: ignore[assignment]
        async with client.map("echo", inputs, errors="yield", **options) as results:
            readers.append((await results._begun()).flow.reader)
            return [result async for result in results]


both_drivers = pytest.mark.parametrize("driver", ["threads", "asyncio"])


def test_every_input_has_its_result_once() -> None:
    api = FakeApi()

    found = {result.index: result.value for result in run(api, range(1000))}

    assert found == {index: index for index in range(1000)}
    assert api.sealed


def test_in_order() -> None:
    assert [result.value for result in run(FakeApi(), range(500), ordered=True)] == list(range(500))


def test_nothing_to_do() -> None:
    assert list(run(FakeApi(), [])) == []


def test_feeding_goes_on_while_results_are_read() -> None:
    api = FakeApi()
    first_result = threading.Event()

    def inputs() -> Iterator[int]:
        yield from range(100)
        assert first_result.wait(5)
        yield from range(100, 200)

    seen = []
    for result in run(api, inputs()):
        first_result.set()
        seen.append(result.value)
    assert sorted(seen) == list(range(200))


def test_memory_stays_bounded_by_what_is_in_flight() -> None:
    api = FakeApi(chunk_size=100)
    results = run(api, itertools.repeat("x", 5000), max_in_flight=400)

    assert sum(1 for _ in results) == 5000
    assert api.peak_in_flight <= 400


def test_large_inputs_go_in_smaller_chunks() -> None:
    api = FakeApi(chunk_size=1000)

    found = sum(len(result.value) for result in run(api, itertools.repeat("x" * 100_000, 300)))

    assert found == 300 * 100_000
    assert max(api.chunk_sizes) < 300


def test_lost_answers_and_cut_streams_lose_and_double_nothing() -> None:
    api = FakeApi()
    api.fail_chunks = [
        ConnectionFailed("away"),
        Unavailable("database away"),
        QueueFull("full", retry_after_seconds=0.1),
    ]
    api.lose_answers = 2
    api.streams_cut_after = 3

    found = sorted(result.value for result in run(api, range(300)))

    assert found == list(range(300))
    assert api.inputs == list(range(300))
    assert api.streams > 1


def test_one_bad_input_does_not_lose_the_rest() -> None:
    results = run(FakeApi(), ["a", "bad", "c"], errors="raise", ordered=True)
    assert next(results).value == "a"

    with pytest.raises(JobFailed) as caught:
        next(results)
    assert (caught.value.code, caught.value.details["index"]) == ("invalid_input", 1)

    assert [result.value for result in results] == ["c"]


def test_bad_inputs_are_handed_out_where_wanted() -> None:
    results = list(run(FakeApi(), ["a", "bad"], ordered=True))

    assert [result.ok for result in results] == [True, False]
    assert results[1].error is not None
    assert results[1].state == "failed"
    with pytest.raises(JobFailed, match="as asked"):
        _ = results[1].value


def test_a_refused_input_is_named_by_its_index_and_what_was_accepted_is_still_read() -> None:
    api = FakeApi(chunk_size=10)
    results = run(api, [*range(15), "unfit"], errors="raise", chunk_size=10)
    seen: list[int] = []

    def read() -> None:
        seen.extend(result.value for result in results)

    with pytest.raises(InvalidInput) as caught:
        read()
    assert caught.value.details["index"] == 15

    read()
    assert sorted(seen) == list(range(10))
    assert not api.sealed


def test_an_exception_of_the_iterable_reaches_the_caller_and_leaves_the_bulk_open() -> None:
    api = FakeApi()

    def inputs() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run(api, inputs()))
    assert not api.sealed


def test_a_map_goes_on_where_an_interrupted_one_stopped() -> None:
    api = FakeApi()

    def interrupted() -> Iterator[int]:
        yield from range(130)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(api, interrupted()))
    accepted = len(api.inputs)

    found = sorted(result.value for result in run(api, range(300)))

    assert found == list(range(300))
    assert api.inputs == list(range(300))
    assert accepted <= 130


def test_results_go_on_behind_a_cursor() -> None:
    api = FakeApi()
    first = run(api, range(100))
    seen = [next(first).value for _ in range(30)]
    cursor = first.cursor
    for _ in first:
        pass

    rest = [result.value for result in run(api, range(100), after=cursor)]

    assert sorted(seen + rest) == list(range(100))


def test_fewer_inputs_than_the_bulk_has_are_refused() -> None:
    api = FakeApi()
    api.inputs = list(range(50))

    with pytest.raises(Conflict, match="already has 50 jobs"):
        list(run(api, range(10)))


def test_a_chunk_that_an_earlier_run_cut_elsewhere_is_not_doubled() -> None:
    api = FakeApi()
    api.chunks = {"0": b"as an earlier run sent it"}
    late = iter([list(range(20))])

    # Committed only after the bulk was read as empty.
    def commit_late() -> None:
        api.inputs = next(late, api.inputs)

    send = api.send

    def sending(request: Any) -> Any:
        if request.path.endswith("/jobs"):
            commit_late()
        return send(request)

    api.send = sending  # type: ignore[method-assign]

    found = sorted(result.value for result in run(api, range(50)))

    assert found == list(range(50))
    assert api.inputs == list(range(50))


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_leaving_early_stops_feeding() -> None:
    api = FakeApi()
    results = run(api, itertools.count(), max_in_flight=1000)
    next(results)

    results.close()

    assert eventually(lambda: not results._feeder._thread.is_alive())
    assert not api.sealed


def test_results_that_nobody_holds_stop_feeding() -> None:
    results = run(FakeApi(), itertools.count(), max_in_flight=1000)
    thread = results._feeder._thread
    next(results)

    del results

    assert eventually(lambda: not thread.is_alive())


def test_batches_are_the_same_results() -> None:
    assert sorted(r.value for batch in run(FakeApi(), range(100)).batches() for r in batch) == list(range(100))


# --- in order, behind a job that does not end ---


def held(readers: list[Reader]) -> int:
    """Results that wait for their turn."""
    [reader] = readers
    assert reader._order is not None
    return len(reader._order._held)


@both_drivers
def test_feeding_stops_behind_a_stuck_job(driver: str) -> None:
    api, readers, seen, fed = FakeApi(), list[Reader](), list[tuple[int, int]](), list[int]()
    api.stuck = {0}

    def look() -> None:
        seen.append((len(api.inputs), held(readers)))
        # For a while the reader has all but the stuck one, and no more is fed.
        if api.stuck and (seen[-20:] == [(1000, 999)] * 20 or len(api.inputs) > 1000):
            fed.append(len(api.inputs))
            api.end(0)

    api.on_frame = look
    found = read(api, range(5000), driver=driver, readers=readers, ordered=True, max_in_flight=1000)

    assert [result.value for result in found] == list(range(5000))
    assert fed == [1000]
    assert max(waiting for _, waiting in seen) < 1000


@both_drivers
def test_little_is_held_behind_a_stuck_job_however_many_others_have_ended(driver: str) -> None:
    """An interrupted run had fed it all."""
    api, readers, seen = FakeApi(chunk_size=10_000, frame_jobs=1000), list[Reader](), list[int]()
    api.inputs, api.stuck = list(range(100_001)), {0}

    def look() -> None:
        seen.append(held(readers))
        if api.delivered == 100_000 and api.stuck:
            api.end(0)

    api.on_frame = look
    found = read(api, range(100_001), driver=driver, readers=readers, ordered=True, max_in_flight=5000)

    assert [result.value for result in found] == list(range(100_001))
    assert 1000 < max(seen) <= 5000


@both_drivers
def test_what_is_no_longer_kept_has_its_place_in_the_order_and_stops_nothing(driver: str) -> None:
    api, readers = FakeApi(), list[Reader]()
    api.inputs, api.stuck = list(range(4000)), {2}
    api.retired = {1, *range(100, 3000)}
    api.streams_cut_after = 50
    api.on_frame = lambda: api.end(2) if api.delivered == 3999 and api.stuck else None

    found = read(api, range(6000), driver=driver, readers=readers, ordered=True, max_in_flight=500)

    assert [result.index for result in found] == list(range(6000))
    assert [result.index for result in found if not result.ok] == sorted(api.retired)
    assert [result.value for result in found if result.ok] == [n for n in range(6000) if n not in api.retired]
    hole = found[1]
    assert (hole.state, hole.id, hole.custom_id) == ("retired", "", None)
    assert isinstance(hole.error, JobRetired)
    assert isinstance(hole.error, Gone)
    assert (hole.error.code, hole.error.details["index"]) == ("retired", 1)
    with pytest.raises(JobRetired, match="no longer kept"):
        _ = hole.value
    with pytest.raises(JobRetired):
        hole.json()


@both_drivers
def test_what_is_no_longer_kept_stops_no_map_in_order_of_completion(driver: str) -> None:
    api, readers = FakeApi(), list[Reader]()
    api.inputs, api.retired = list(range(4000)), set(range(3000))

    found = read(api, range(6000), driver=driver, readers=readers, max_in_flight=500)

    assert sorted(result.value for result in found) == list(range(3000, 6000))
    assert api.inputs == list(range(6000))


def test_what_is_no_longer_kept_is_raised_where_errors_are() -> None:
    api = FakeApi()
    api.inputs, api.retired = list(range(3)), {1}
    results = run(api, range(3), errors="raise", ordered=True)
    assert next(results).value == 0

    with pytest.raises(JobRetired, match="index 1"):
        next(results)

    assert [result.value for result in results] == [2]


def test_a_failed_feed_ends_a_map_in_order_behind_a_hole() -> None:
    api = FakeApi()
    api.inputs, api.retired = list(range(100)), {50}

    def inputs() -> Iterator[int]:
        yield from range(100)
        raise ZeroDivisionError

    results, seen = run(api, inputs(), ordered=True), list[int]()
    with pytest.raises(ZeroDivisionError):
        seen.extend(result.index for result in results)
    seen.extend(result.index for result in results)

    assert seen == list(range(100))


# --- cursors ---


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("taken", [0, 10, 30, 45])
def test_a_cursor_is_never_beyond_what_was_handed_out(taken: int, *, ordered: bool) -> None:
    api = FakeApi()
    first = run(api, range(100), ordered=ordered)
    seen = [next(first).value for _ in range(taken)]
    cursor = first.cursor
    assert cursor <= taken
    for _ in first:
        pass

    rest = [result.value for result in run(api, range(100), ordered=ordered, after=cursor)]

    assert {*seen, *rest} == set(range(100))
    assert len(rest) == 100 - cursor


def test_a_cursor_of_batches_is_behind_the_batch() -> None:
    results = run(FakeApi(), range(100))
    batches = results.batches()

    assert [result.value for result in next(batches)] == list(range(30))[::-1]
    assert results.cursor == 30
    results.close()


def test_a_feeding_task_ends_when_it_is_cancelled_while_it_is_woken() -> None:
    async def cancel() -> None:
        feeder = AsyncFeeder(flow=None, transport=None, source=iter(()))  # type: ignore[arg-type]
        waiting = asyncio.create_task(feeder.wait_until(lambda: False))
        while not feeder._changed._waiters:  # noqa: ASYNC110  nothing tells that somebody waits
            await asyncio.sleep(0)
        feeder.wake()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(cancel())
