"""A bulk that runs in memory, behind the transport's interface: each job's result is its input."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from batchyard import results, schemas
from batchyard.errors import BatchyardError, ConnectionFailed, IdempotencyConflict, InvalidInput
from batchyard.jobs import ID_STRIDE, ErrorInfo, ResultRow, State, format_id
from batchyard.sdk.steps import Request, Response

BULK = format_id(77)


class FakeApi:
    """Keeps one bulk, whose jobs end when they are added, but for the `stuck` ones.

    `fail_chunks` and `lose_answers` make requests fail, before or after they took effect. Retired jobs have ended, and
    no stream shows them.
    """

    def __init__(self, *, chunk_size: int = 100, frame_jobs: int = 30) -> None:
        self.inputs: list[Any] = []
        self.stuck: set[int] = set()
        """Indexes of jobs that do not end until `end` is called."""
        self.retired: set[int] = set()
        self.chunks: dict[str, bytes] = {}
        self.chunk_sizes: list[int] = []
        self.sealed = False
        self.chunk_size = chunk_size
        self.streams = 0
        self.streams_cut_after: int | None = None
        """Frames that a stream gives before its connection is lost."""
        self.fail_chunks: list[BatchyardError] = []
        self.lose_answers = 0
        self.closed = False
        self.peak_in_flight = 0
        self.delivered = 0
        self.on_chunk: Callable[[], None] | None = None
        self.on_frame: Callable[[], None] | None = None
        """Called by the reader, between frames."""
        self._ended: list[int] = []
        """Indexes in the order of completion; a cursor counts them."""
        self._seen = 0
        """Inputs that have ended or are stuck."""
        self._frame_jobs = frame_jobs
        self._changed = threading.Condition()

    def end(self, index: int) -> None:
        """Let a stuck job end."""
        with self._changed:
            self._run()
            self.stuck.remove(index)
            self._ended.append(index)
            self._changed.notify_all()

    # --- the transport ---

    def send(self, request: Request) -> Response:
        document: Any
        match request.method, request.path.split("/")[2:]:
            case "POST", ["bulks"] | ["bulks", _, "seal"]:
                self.sealed = self.sealed or request.path.endswith("/seal")
                document = self._bulk()
            case "GET", ["bulks", _]:
                document = self._bulk()
            case "POST", ["bulks", _, "jobs"]:
                document = self._add(request)
            case other:
                raise AssertionError(f"unexpected {other}")
        with self._changed:
            self._changed.notify_all()
        return Response(status=200, body=msgspec.json.encode(document))

    @contextmanager
    def stream(self, request: Request) -> Iterator[Iterator[bytes]]:
        self.streams += 1
        yield self._frames(int(request.query["after"]))

    def close(self) -> None:
        self.closed = True

    # --- the bulk ---

    def _bulk(self) -> schemas.Bulk:
        return schemas.Bulk(
            id=BULK,
            model="echo@1",
            lane="firm",
            jobs=len(self.inputs),
            chunk_size=self.chunk_size,
            created_at="2026-01-01T00:00:00Z",
            counts={"succeeded": len(self.inputs) - len(self.stuck)},
            sealed_at="2026-01-01T00:00:01Z" if self.sealed else None,
        )

    def _add(self, request: Request) -> schemas.ChunkAccepted:
        if self.fail_chunks:
            raise self.fail_chunks.pop(0)
        assert request.body is not None
        assert request.idempotency_key is not None
        inputs = msgspec.json.decode(request.body)["inputs"]
        known = self.chunks.get(request.idempotency_key)
        if known is not None and known != request.body:
            raise IdempotencyConflict("another body")
        for index, item in enumerate(inputs):
            if item == "unfit":
                raise InvalidInput("does not fit", index=index)
        if known is None:
            self.chunks[request.idempotency_key] = request.body
            self.chunk_sizes.append(len(inputs))
            self.inputs += inputs
        self.peak_in_flight = max(self.peak_in_flight, len(self.inputs) - self.delivered)
        if self.on_chunk is not None:
            self.on_chunk()
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionFailed("the answer was lost")
        return schemas.ChunkAccepted(
            bulk_id=BULK, first_id=BULK, accepted=len(inputs), created_at="2026-01-01T00:00:00Z"
        )

    def _run(self) -> None:
        """End what was added, by whomever, since the last time."""
        seen = len(self.inputs)  # once: another thread may be adding
        self._ended += [index for index in range(self._seen, seen) if index not in self.stuck]
        self._seen = seen

    def _frames(self, cursor: int) -> Iterator[bytes]:
        """A frame's cursor is the number of jobs up to its end; a stream with nothing new ends at once."""
        given = 0
        told: int | None = None
        while True:
            with self._changed:
                self._run()
                if len(self._ended) <= cursor and not (self.sealed and len(self._ended) == len(self.inputs)):
                    self._changed.wait(timeout=0.05)
                    self._run()
                end = min(cursor + self._frame_jobs, len(self._ended))
                rows = [self._row(place) for place in range(cursor, end) if self._ended[place] not in self.retired]
                settled = len(self.inputs) if end == len(self._ended) == len(self.inputs) else None
                finished = self.sealed and settled is not None
            if self.streams_cut_after is not None and given >= self.streams_cut_after:
                raise ConnectionFailed("the stream was cut")
            cursor = end
            given += 1
            self.delivered = max(self.delivered, cursor)
            if self.on_frame is not None:
                self.on_frame()
            # Out of order within a frame, as batches end.
            yield results.pack_frame(results.Frame(cursor, finished, rows[::-1], settled))
            if finished or (not rows and settled == told):
                return
            told = settled

    def _row(self, place: int) -> ResultRow:
        seq, index = place + 1, self._ended[place]
        value = self.inputs[index]
        job_id = (index + 1) * ID_STRIDE
        if value == "bad":
            body = msgspec.json.encode(ErrorInfo("invalid_input", "as asked"))
            return ResultRow(seq, job_id, index, State.FAILED, None, results.ERROR, body)
        return ResultRow(seq, job_id, index, State.SUCCEEDED, None, *results.encode(value))


class AsyncFakeApi:
    """The same bulk, spoken to from an event loop."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api

    async def send(self, request: Request) -> Response:
        return await asyncio.to_thread(self._api.send, request)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        with self._api.stream(request) as frames:
            yield self._pieces(frames)

    async def _pieces(self, frames: Iterator[bytes]) -> AsyncIterator[bytes]:
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            yield frame

    async def close(self) -> None:
        self._api.close()
