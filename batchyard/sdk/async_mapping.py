"""The running of a `map` with asyncio: as `batchyard.sdk.mapping`, with a task in the thread's place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from batchyard.errors import ConnectionFailed, Unavailable
from batchyard.sdk.feeding import SLOW_CHUNK_SECONDS, take
from batchyard.sdk.http import AsyncHttp, adrive, aperform
from batchyard.sdk.mapping import Flow, Handing
from batchyard.sdk.reading import Result
from batchyard.sdk.steps import Room, Step, Take, Taken

RECHECK_SECONDS = 0.5


class AsyncResults(AsyncIterator[Result]):
    """The results of an `AsyncClient.map`, as they come; see `batchyard.sdk.mapping.Results`. For one task."""

    def __init__(
        self,
        transport: AsyncHttp,
        inputs: Iterable[Any] | AsyncIterable[Any] | None,
        *,
        key: str | None,
        begin: Callable[[], Awaitable[tuple[Flow, Handing]]],
    ) -> None:
        """`inputs` None: nothing is fed, the results of the bulk are read."""
        self.key = key
        """Give it to `map` again, with the same inputs, to go on after an interruption."""
        self._transport = transport
        self._inputs = inputs
        self._begin = begin
        self._running: _Running | None = None

    @property
    def cursor(self) -> int:
        """Everything up to here has been handed out: `after` for a later run in the same order."""
        return 0 if self._running is None else self._running.handing.cursor

    @property
    def bulk_id(self) -> str | None:
        """None until it has begun."""
        return None if self._running is None else self._running.flow.reader.bulk_id

    def __aiter__(self) -> AsyncResults:
        return self

    async def __anext__(self) -> Result:
        running = await self._begun()
        while (result := running.handing.next()) is None:
            found = await self._next_batch(running)
            if found is None:
                raise StopAsyncIteration
            running.handing.put(found, cursor=running.flow.reader.cursor)
        return result

    async def batches(self) -> AsyncIterator[list[Result]]:
        """The results in lists, as they come over the wire."""
        running = await self._begun()
        while (found := await self._next_batch(running)) is not None:
            running.handing.cursor = running.flow.reader.cursor
            if found:
                yield found

    async def _begun(self) -> _Running:
        if self._running is None:
            flow, handing = await self._begin()
            self._running = _Running(flow, handing, self._transport, self._inputs)
        return self._running

    async def _next_batch(self, running: _Running) -> list[Result] | None:
        if (error := running.flow.untold_error()) is not None:
            raise error
        found = await anext(running.batches, None)
        if found is None:
            if (error := running.flow.untold_error()) is not None:
                raise error
            await self.aclose()
        return found

    async def aclose(self) -> None:
        """Stop feeding and reading. Not needed after the last result."""
        if self._running is not None:
            await self._running.stop()

    async def __aenter__(self) -> AsyncResults:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Running:
    """A map that has begun: its feeding task and its stream of results."""

    def __init__(
        self, flow: Flow, handing: Handing, transport: AsyncHttp, inputs: Iterable[Any] | AsyncIterable[Any] | None
    ) -> None:
        self.flow = flow
        self.handing = handing
        given = () if inputs is None else inputs
        source = aiter(given) if isinstance(given, AsyncIterable) else iter(given)
        feeder = AsyncFeeder(flow, transport, source)
        self.batches = _read(flow, transport, feeder=feeder, count=handing.count)
        self._task: asyncio.Task[None] | None = None
        if inputs is None:
            flow.ended = True
        else:
            self._task = asyncio.create_task(feeder.run(), name="batchyard-map")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self.batches.aclose()
        self.handing.close()


class AsyncFeeder:
    """The task that feeds. A blocking iterable blocks the loop: give it an asynchronous one."""

    def __init__(self, flow: Flow, transport: AsyncHttp, source: Iterator[Any] | AsyncIterator[Any]) -> None:
        self._flow = flow
        self._transport = transport
        self._source = source
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Two sides wait on one event, which either may clear; so both look again now and then."""
        while not condition():
            self._changed.clear()
            # Not `wait_for`: until Python 3.12 that swallows a cancellation which comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_SECONDS):
                    await self._changed.wait()

    async def run(self) -> None:
        try:
            await adrive(self._flow.feed.steps(), self._perform)
        except Exception as error:  # noqa: BLE001  the reader raises it
            self._flow.error = error
        finally:
            self._flow.ended = True
            self.wake()

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Take):
            self.wake()
            if isinstance(self._source, AsyncIterator):
                return await _take(self._source, step.count)
            return take(self._source, step.count)
        if isinstance(step, Room):
            return await self.wait_until(lambda: self._flow.has_room(step.jobs))
        return await aperform(step, self._transport)


async def _read(
    flow: Flow, transport: AsyncHttp, *, feeder: AsyncFeeder, count: Callable[[list[Result]], None]
) -> AsyncGenerator[list[Result], None]:
    """The results in lists; an empty one now and then, so that the caller can look around."""
    await feeder.wait_until(flow.has_begun)
    reader = flow.reader
    while not reader.finished:
        gave_up = flow.gave_up
        try:
            async with transport.stream(reader.request()) as chunks:
                async for chunk in chunks:
                    for found in reader.feed(chunk):
                        count(found)
                        feeder.wake()
                        yield found
                    if reader.starts_over or (gave_up and reader.settled):
                        break
        except (ConnectionFailed, Unavailable) as failure:
            await aperform(reader.pause_after(failure), transport)
        yield []
        if gave_up and reader.settled:
            return


async def _take(source: AsyncIterator[Any], count: int) -> Taken:
    """The next inputs of an asynchronous iterator; fewer where they come slowly."""
    inputs: list[Any] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + SLOW_CHUNK_SECONDS
    async for item in source:
        inputs.append(item)
        if len(inputs) == count or loop.time() > end:
            return Taken(inputs, False)
    return Taken(inputs, True)
