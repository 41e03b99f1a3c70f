"""Reading a bulk's results: frames become `Result`s, in the order of completion or of the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from batchyard import results
from batchyard.errors import BatchyardError, Gone, JobError, JobRetired
from batchyard.jobs import ErrorInfo, ResultRow, State, format_id
from batchyard.sdk import calls
from batchyard.sdk.steps import Patience, Pause, Request

QUIET_SECONDS: Final = 5.0
"""A stream without news for so long is asked for again; also how late a failed feed is noticed."""

HELD_BYTES: Final = 256 * 1024 * 1024
"""What results that wait for their turn may take up, about."""

RESULT_BYTES: Final = 500
"""What a held result takes up beside its body, about."""

HOLES_AT_ONCE: Final = 4_000
"""Retention may have left millions; they are made as they are handed out."""


class Result:
    """What became of one input of a `map`."""

    __slots__ = ("_row",)

    def __init__(self, row: ResultRow) -> None:
        self._row = row

    @property
    def index(self) -> int:
        """The input's place in what was given."""
        return self._row.index

    @property
    def id(self) -> str:
        """The job's id; empty where it is "retired"."""
        return format_id(self._row.id)

    @property
    def state(self) -> str:
        """ "succeeded", "failed", "cancelled" or "expired"; "retired" where that is no longer kept."""
        return State(self._row.state).word

    @property
    def custom_id(self) -> str | None:
        return self._row.custom_id

    @property
    def ok(self) -> bool:
        return self._row.state == State.SUCCEEDED

    @property
    def value(self) -> Any:
        """The result, decoded at each access, tensors as NumPy arrays where NumPy is installed; raises `error`."""
        row = self._row
        if row.format == results.ERROR or row.body is None or row.format is None:
            raise self._absence()
        return results.decode(row.format, row.body)

    def json(self, *, tensors: results.TensorRendering = "numbers") -> bytes:
        """The result as JSON text; raises `error`."""
        row = self._row
        if row.format == results.ERROR or row.body is None or row.format is None:
            raise self._absence()
        return results.to_json(row.format, row.body, tensors=tensors)

    def _absence(self) -> BatchyardError:
        return self.error or Gone(f"the result of job {self.id} is no longer kept")

    @property
    def error(self) -> JobError | None:
        """Why there is no result; None of a success."""
        row = self._row
        if row.state == State.SUCCEEDED:
            return None
        info = results.decode(results.ERROR, row.body) if row.format == results.ERROR and row.body is not None else None
        assert info is None or isinstance(info, ErrorInfo)
        return calls.error_of(State(row.state), info, job_id=self.id, index=row.index)

    def __repr__(self) -> str:
        return f"<Result {self.index} {self.state}>"


class Hole(Result):
    """In the place of an input whose job had ended and is no longer kept. Only reading in order misses it."""

    __slots__ = ("_index",)

    def __init__(self, index: int) -> None:
        self._index = index

    @property
    def index(self) -> int:
        return self._index

    @property
    def id(self) -> str:
        return ""

    @property
    def state(self) -> str:
        return "retired"

    @property
    def custom_id(self) -> None:
        return None

    @property
    def ok(self) -> bool:
        return False

    @property
    def value(self) -> Any:
        raise self.error

    def json(self, *, tensors: results.TensorRendering = "numbers") -> bytes:
        raise self.error

    @property
    def error(self) -> JobRetired:
        reason = "its job had ended and is no longer kept"
        return JobRetired(f"no result for index {self._index}: {reason}", index=self._index, reason=reason)


class Reader:
    """Where the reading of one bulk stands. Owned by the one thread or task that reads."""

    def __init__(
        self, bulk_id: str, *, after: int, ordered: bool, passed: int, max_held: int, patience: Patience
    ) -> None:
        """`after` is a `cursor`; `max_held` bounds the results that wait for their turn."""
        self.bulk_id = bulk_id
        self.finished = False
        self.passed = passed
        """Jobs of the bulk that are behind us: read, or no longer kept, or in order handed out."""
        self.settled = False
        """Whether this stream has said that all jobs so far have ended, and everything that is kept has been read."""
        self.starts_over = False
        """Whether to ask anew: what is next was let go of."""
        self._frames = results.FrameReader()
        self._patience = patience
        self._order = InOrder(first=after, max_held=max_held) if ordered else None
        self._stream_cursor = 0 if ordered else after

    @property
    def cursor(self) -> int:
        """Where a later reader in the same order goes on after what was returned."""
        return self._stream_cursor if self._order is None else self._order.next

    @property
    def is_full(self) -> bool:
        """More results came early than may be held: those to come would have to be read twice."""
        return self._order is not None and self._order.has_let_go

    def request(self) -> Request:
        """Ask for what has not been read; a stream cut short leaves nothing behind."""
        self._frames = results.FrameReader()
        self.settled = self.starts_over = False
        return calls.results_request(self.bulk_id, after=self._stream_cursor, wait_seconds=QUIET_SECONDS)

    def feed(self, chunk: bytes) -> Iterator[list[Result]]:
        """Take a piece of the stream; yield, in lists, the results whose turn has come. To be exhausted."""
        for frame in self._frames.feed(chunk):
            self._patience.reset()
            if self._order is None:
                yield self._as_they_come(frame)
            else:
                yield from self._in_order(frame, self._order)
            if self.starts_over:
                return

    def _as_they_come(self, frame: results.Frame) -> list[Result]:
        self._went_to(frame)
        self.passed = self.passed + len(frame.records) if frame.settled is None else frame.settled
        return list(map(Result, frame.records))

    def _in_order(self, frame: results.Frame, order: InOrder) -> Iterator[list[Result]]:
        turn = order.put(frame.records)
        self.passed = order.next
        yield turn
        if frame.settled is not None:
            for piece in order.settle(frame.settled):
                self.passed = order.next
                yield piece
        if order.must_go_back:
            self._stream_cursor = order.go_back()
            self.starts_over = True
        else:
            self._went_to(frame)

    def _went_to(self, frame: results.Frame) -> None:
        self._stream_cursor = frame.cursor
        self.finished = frame.finished
        self.settled = frame.settled is not None or (self.settled and not frame.records)

    def pause_after(self, failure: BatchyardError) -> Pause:
        """What to do before asking again; raises the failure once patience is over."""
        seconds = self._patience.pause_after(failure)
        if seconds is None:
            raise failure
        return Pause(seconds)


class InOrder:
    """Puts results back into the order of the inputs: holds those that came early until everything before has come.

    What is held is bounded, whatever the results are waiting for: beyond `max_held` or `max_bytes` the furthest are let
    go of, and are read once more when their turn is near. `first` is the index to begin with.
    """

    def __init__(self, *, first: int, max_held: int, max_bytes: int = HELD_BYTES) -> None:
        self.next = first
        """The index whose turn it is: all before it have been returned."""
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._held: dict[int, ResultRow] = {}
        self._held_bytes = 0
        self._let_go_from: int | None = None
        """The least index that was let go of; everything from it on is passed over, and will be read again."""
        self._go_back_to: int | None = None
        """The cursor before everything that was let go of."""

    @property
    def has_let_go(self) -> bool:
        return self._let_go_from is not None

    @property
    def must_go_back(self) -> bool:
        """The next one was let go of; nothing is held then."""
        return self._let_go_from == self.next

    def go_back(self) -> int:
        """The cursor to read from again."""
        assert self._go_back_to is not None
        cursor = self._go_back_to
        self._let_go_from = self._go_back_to = None
        return cursor

    def put(self, arrived: Iterable[ResultRow]) -> list[Result]:
        """Take what has arrived; return the results whose turn has come."""
        held, end = self._held, self._let_go_from
        for row in arrived:
            if row.index >= self.next and (end is None or row.index < end):
                held[row.index] = row
                self._held_bytes += _size(row)
        out = []
        while (found := held.pop(self.next, None)) is not None:
            self._held_bytes -= _size(found)
            self.next += 1
            out.append(Result(found))
        if len(held) > self._max_held or self._held_bytes > self._max_bytes:
            self._let_go()
        return out

    def settle(self, jobs: int) -> Iterator[list[Result]]:
        """All of the first so many have arrived, or never will: return what is left of them, in lists, with holes."""
        end = jobs if self._let_go_from is None else min(jobs, self._let_go_from)
        while self.next < end:
            piece = range(self.next, min(end, self.next + HOLES_AT_ONCE))
            self.next = piece.stop
            yield [self._taken(index) for index in piece]

    def _taken(self, index: int) -> Result:
        row = self._held.pop(index, None)
        if row is None:
            return Hole(index)
        self._held_bytes -= _size(row)
        return Result(row)

    def _let_go(self) -> None:
        """Of the furthest, a quarter more than must be, so that it is not done at every arrival."""
        number, bytes_ = self._max_held * 3 // 4, self._max_bytes * 3 // 4
        for index in sorted(self._held, reverse=True):
            if len(self._held) <= number and self._held_bytes <= bytes_:
                return
            row = self._held.pop(index)
            self._held_bytes -= _size(row)
            self._let_go_from = index
            # A cursor is the seq of the last record before it.
            before = row.seq - 1
            self._go_back_to = before if self._go_back_to is None else min(self._go_back_to, before)


def _size(row: ResultRow) -> int:
    return RESULT_BYTES + (0 if row.body is None else len(row.body))
