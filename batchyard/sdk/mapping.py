"""The running of a `map`: one side feeds the bulk from the iterable while the other reads the results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from batchyard import schemas
from batchyard.errors import ConnectionFailed, Unavailable
from batchyard.sdk import calls
from batchyard.sdk.feeding import Feed, take
from batchyard.sdk.http import Transport, drive, perform
from batchyard.sdk.progress import Bar
from batchyard.sdk.reading import Reader, Result
from batchyard.sdk.steps import Patience, Room, Step, Take

DEFAULT_CHUNK_JOBS = 10_000
"""The API's own limit, unless configured otherwise."""

MAX_IN_FLIGHT = 200_000
"""Jobs of a map that are accepted and whose results have not been read, or in order not handed out."""


class Flow:
    """How much of a map is under way, and whether its feeding has ended.

    The feeding side writes `error` and `ended`, the reading side nothing but the reader's own counts.
    """

    def __init__(self, feed: Feed, reader: Reader, *, max_in_flight: int) -> None:
        self.feed = feed
        self.reader = reader
        self.ended = False
        self.error: BaseException | None = None
        self._error_is_told = False
        self._max_in_flight = max_in_flight

    def has_room(self, jobs: int) -> bool:
        in_flight = self.feed.accepted - self.reader.passed
        return in_flight <= 0 or (in_flight + jobs <= self._max_in_flight and not self.reader.is_full)

    def has_begun(self) -> bool:
        """Results may come. Before, an error of the first chunk shall not wait for a quiet stream to end."""
        return self.ended or self.feed.accepted > 0

    @property
    def gave_up(self) -> bool:
        """Feeding failed: the bulk is not sealed, and its results will never call themselves finished."""
        return self.ended and self.error is not None

    def untold_error(self) -> BaseException | None:
        """The error that ended feeding, to be raised once."""
        if self.error is None or self._error_is_told:
            return None
        self._error_is_told = True
        return self.error


class Handing:
    """Hands results to the user one by one, counts them on the bar, and raises what failed where that is wanted."""

    def __init__(self, *, raises: bool, bar: Bar | None, cursor: int) -> None:
        self.cursor = cursor
        """Everything up to here has been handed out."""
        self._raises = raises
        self._bar = bar
        self._ready: list[Result] = []
        self._cursor_after = cursor

    def put(self, found: list[Result], *, cursor: int) -> None:
        """What is to be handed out next, and the cursor after it."""
        self._ready = found[::-1]
        self._cursor_after = cursor

    def next(self) -> Result | None:
        """None once everything that was put here has been handed out."""
        if not self._ready:
            self.cursor = self._cursor_after
            return None
        result = self._ready.pop()
        if not self._ready:
            self.cursor = self._cursor_after
        if self._raises and (error := result.error) is not None:
            raise error
        return result

    def count(self, found: list[Result]) -> None:
        if self._bar is not None:
            self._bar.add(len(found), sum(not result.ok for result in found))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def prepare(
    bulk: schemas.Bulk,
    *,
    total: int | None,
    after: int,
    ordered: bool,
    raises: bool,
    max_in_flight: int,
    progress: bool | str,
    retry_seconds: float,
) -> tuple[Flow, Handing]:
    """What a map, or the reading of a bulk, starts from."""
    patience = max(retry_seconds, calls.WAITING_PATIENCE_SECONDS)
    passed = _passed(bulk, after=after, ordered=ordered)
    reader = Reader(
        bulk.id, after=after, ordered=ordered, passed=passed, max_held=max_in_flight, patience=Patience(patience)
    )
    feed = Feed(bulk, patience=Patience(patience, through_full=True))
    flow = Flow(feed, reader, max_in_flight=max_in_flight)
    title = progress if isinstance(progress, str) else bulk.model
    bar = Bar(title, total=total, done=passed) if progress else None
    return flow, Handing(raises=raises, bar=bar, cursor=after)


def _passed(bulk: schemas.Bulk, *, after: int, ordered: bool) -> int:
    """Jobs before the cursor. In the order of completion nobody knows; what has ended is about it until it is told."""
    if ordered or not after:
        return after
    return sum(bulk.counts.get(word, 0) for word in FINISHED)


def map_chunk_size(chunk_size: int | None, max_in_flight: int) -> int | None:
    """Chunks small enough that some are read while others are fed; None leaves it to the server."""
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight is {max_in_flight}; at least 1")
    if chunk_size is not None:
        return min(chunk_size, max_in_flight)
    return None if max_in_flight >= DEFAULT_CHUNK_JOBS * 4 else max(1, max_in_flight // 4)


FINISHED: tuple[schemas.StateWord, ...] = ("succeeded", "failed", "cancelled", "expired")


class Results(Iterator[Result]):
    """The results of a `Client.map`, as they come. Iterate it once, from one thread.

    An error that it raises for one input, or because feeding stopped, does not end it: iterate on for the rest. Leaving
    it early stops feeding; what was accepted still runs, and the same `key` picks up there.
    """

    def __init__(
        self, transport: Transport, inputs: Iterable[Any] | None, *, key: str | None, flow: Flow, handing: Handing
    ) -> None:
        """`inputs` None: nothing is fed, the results of the bulk are read."""
        self.bulk_id = flow.reader.bulk_id
        self.key = key
        """Give it to `map` again, with the same inputs, to go on after an interruption."""
        self._flow = flow
        self._handing = handing
        self._feeder = Feeder(flow, transport, iter(() if inputs is None else inputs))
        self._batches = _read(flow, transport, feeder=self._feeder, count=handing.count)
        if inputs is None:
            flow.ended = True
        else:
            self._feeder.start()

    @property
    def cursor(self) -> int:
        """Everything up to here has been handed out: `after` for a later run in the same order."""
        return self._handing.cursor

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Result:
        while (result := self._handing.next()) is None:
            found = self._next_batch()
            if found is None:
                raise StopIteration
            self._handing.put(found, cursor=self._flow.reader.cursor)
        return result

    def batches(self) -> Iterator[list[Result]]:
        """The results in lists, as they come over the wire: the fastest way to read millions.

        Raises nothing for a failed input: look at `ok`.
        """
        while (found := self._next_batch()) is not None:
            self._handing.cursor = self._flow.reader.cursor
            if found:
                yield found

    def _next_batch(self) -> list[Result] | None:
        if (error := self._flow.untold_error()) is not None:
            raise error
        found = next(self._batches, None)
        if found is None:
            if (error := self._flow.untold_error()) is not None:
                raise error
            self.close()
        return found

    def close(self) -> None:
        """Stop feeding and reading. Not needed after the last result."""
        self._feeder.abandon()
        self._batches.close()
        self._handing.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()


class _Abandoned(Exception):
    """Nobody reads the results any more."""


class Feeder:
    """The thread that feeds. Knows nothing of `Results`, so that dropping those ends it."""

    def __init__(self, flow: Flow, transport: Transport, source: Iterator[Any]) -> None:
        self._flow = flow
        self._transport = transport
        self._source = source
        self._changed = threading.Condition()
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name="batchyard-map", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def abandon(self) -> None:
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Results have arrived, so there may be room."""
        with self._changed:
            self._changed.notify_all()

    def wait_until_begun(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_abandoned or self._flow.has_begun())

    def _run(self) -> None:
        try:
            drive(self._flow.feed.steps(), self._perform)
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001  the reader raises it
            self._flow.error = error
        finally:
            with self._changed:
                self._flow.ended = True
                self._changed.notify_all()

    def _perform(self, step: Step) -> Any:
        if isinstance(step, Take):
            self.wake()
            answer: Any = take(self._source, step.count)
        elif isinstance(step, Room):
            with self._changed:
                self._changed.wait_for(lambda: self._is_abandoned or self._flow.has_room(step.jobs))
            answer = None
        else:
            answer = perform(step, self._transport)
        if self._is_abandoned:
            raise _Abandoned
        return answer


def _read(
    flow: Flow, transport: Transport, *, feeder: Feeder, count: Callable[[list[Result]], None]
) -> Generator[list[Result], None, None]:
    """The results in lists; an empty one now and then, so that the caller can look around."""
    feeder.wait_until_begun()
    reader = flow.reader
    while not reader.finished:
        gave_up = flow.gave_up
        try:
            with transport.stream(reader.request()) as chunks:
                for chunk in chunks:
                    for found in reader.feed(chunk):
                        count(found)
                        feeder.wake()
                        yield found
                    if reader.starts_over or (gave_up and reader.settled):
                        break
        except (ConnectionFailed, Unavailable) as failure:
            perform(reader.pause_after(failure), transport)
        yield []
        if gave_up and reader.settled:
            return
