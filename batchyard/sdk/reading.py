"""Reading a bulk's results: frames become `Result`s, in the order of completion or of the inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from batchyard import results
from batchyard.errors import BatchyardError, Gone, JobError
from batchyard.jobs import ErrorInfo, ResultRow, State, format_id
from batchyard.sdk import calls
from batchyard.sdk.steps import Patience, Pause, Request

QUIET_SECONDS: Final = 5.0
"""A stream without news for so long is asked for again; also how late a failed feed is noticed."""


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
        """The job's id."""
        return format_id(self._row.id)

    @property
    def state(self) -> str:
        """ "succeeded", "failed", "cancelled" or "expired"."""
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


class Reader:
    """Where the reading of one bulk stands. Owned by the one thread or task that reads."""

    def __init__(self, bulk_id: str, *, after: int, ordered: bool, patience: Patience) -> None:
        self.bulk_id = bulk_id
        self._frames = results.FrameReader()
        self._patience = patience
        self._order = InOrder() if ordered else None
        self.cursor = after
        """Everything up to here has been handed out (or, in order, is held back for its turn)."""
        self.finished = False
        self.received = 0

    def request(self) -> Request:
        """Ask for what comes after the cursor; a stream cut short leaves nothing behind."""
        self._frames = results.FrameReader()
        return calls.results_request(self.bulk_id, after=self.cursor, wait_seconds=QUIET_SECONDS)

    def feed(self, chunk: bytes) -> list[Result]:
        """Take a piece of the stream; return what it completed."""
        out: list[Result] = []
        for frame in self._frames.feed(chunk):
            self._patience.reset()
            self.cursor = frame.cursor
            self.finished = frame.finished
            self.received += len(frame.records)
            arrived = list(map(Result, frame.records))
            out += arrived if self._order is None else self._order.put(arrived)
        if self.finished and self._order is not None:
            out += self._order.rest()
        return out

    def pause_after(self, failure: BatchyardError) -> Pause:
        """What to do before asking again; raises the failure once patience is over."""
        seconds = self._patience.pause_after(failure)
        if seconds is None:
            raise failure
        return Pause(seconds)


class InOrder:
    """Holds results back until everything before them has arrived."""

    def __init__(self) -> None:
        self._next = 0
        self._held: dict[int, Result] = {}

    def put(self, arrived: Iterable[Result]) -> list[Result]:
        """Take results; return those whose turn has come."""
        held = self._held
        for result in arrived:
            held[result.index] = result
        out = []
        while (result_ := held.pop(self._next, None)) is not None:
            out.append(result_)
            self._next += 1
        return out

    def rest(self) -> list[Result]:
        """What is left at the end: there are holes only where retention has already deleted a result."""
        out = [self._held[index] for index in sorted(self._held)]
        self._held.clear()
        return out
