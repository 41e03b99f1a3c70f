"""GET /v1/bulks/{id}/results: a bulk's results in the order of completion, as they come, resumable after any cursor.

As NDJSON, lines of results with lines of cursors between them, see `batchyard.schemas.ResultLine`; as
`application/x-batchyard-results`, the frames of `batchyard.results`. Either way results are passed on as stored: a job
costs one formatted line, or nothing at all in Python.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from batchyard import results
from batchyard.errors import InvalidRequest
from batchyard.jobs import State
from batchyard.result_pages import PAGE_BYTES, ResultPages
from batchyard.results import Frame, TensorRendering
from batchyard.schemas import MEDIA_NDJSON
from batchyard.store.base import JobStore, ResultRow
from batchyard_producer.intake import Request
from batchyard_producer.waiting import Waiting

APART_SECONDS = 0.01
"""Between two reads that find something: under load a page gathers some hundred results, not some ten."""
SIGN_OF_LIFE_SECONDS = 15.0
"""A stream without results repeats its cursor this often, so that proxies and readers know that it lives."""

_ENDED = {
    state: b'{"index":%%d,"id":"%%016x","state":"%s",%%b"error":%%b}\n' % state.word.encode()
    for state in State
    if state.is_terminal
}
_BARE = {
    state: b'{"index":%%d,"id":"%%016x","state":"%s"%%b}\n' % state.word.encode()
    for state in State
    if state.is_terminal
}
_SUCCEEDED = b'{"index":%d,"id":"%016x","state":"succeeded","result":%b}\n'
_SUCCEEDED_NAMED = b'{"index":%d,"id":"%016x","state":"succeeded","custom_id":%b,"result":%b}\n'
_encode = msgspec.json.Encoder().encode


def ndjson(rows: Sequence[ResultRow], *, cursor: int, finished: bool, tensors: TensorRendering) -> bytes:
    """Lines of results, then the line with the cursor after them."""
    to_json, json, succeeded = results.to_json, results.JSON, State.SUCCEEDED
    lines = [
        _SUCCEEDED
        % (row.index, row.id, row.body if row.format == json else to_json(row.format, row.body, tensors=tensors))
        if row.state == succeeded and row.custom_id is None and row.body is not None and row.format is not None
        else _rare_line(row, tensors=tensors)
        for row in rows
    ]
    lines.append(b'{"cursor":"%d","finished":%b}\n' % (cursor, b"true" if finished else b"false"))
    return b"".join(lines)


def _rare_line(row: ResultRow, *, tensors: TensorRendering) -> bytes:
    """Of a job with a custom_id, or one that ended otherwise than well."""
    if row.state == State.SUCCEEDED and row.body is not None and row.format is not None:
        body = results.to_json(row.format, row.body, tensors=tensors)
        return _SUCCEEDED_NAMED % (row.index, row.id, _encode(row.custom_id), body)
    if row.body is None:
        named = b"" if row.custom_id is None else b',"custom_id":' + _encode(row.custom_id)
        return _BARE[row.state] % (row.index, row.id, named)
    named = b"" if row.custom_id is None else b'"custom_id":' + _encode(row.custom_id) + b","
    return _ENDED[row.state] % (row.index, row.id, named, row.body)


class ResultStream:
    """Streams one bulk to one reader. Lives as long as the request."""

    def __init__(
        self,
        request: Request,
        *,
        store: JobStore,
        waiting: Waiting,
        pool: ThreadPoolExecutor,
        bulk_id: int,
        tenant_id: int,
    ) -> None:
        self._request = request
        self._waiting = waiting
        self._pool = pool
        self._binary = results.FRAMES_TYPE in (request.header(b"accept") or "")
        self._tensors: TensorRendering = "base64" if request.query("tensors") == "base64" else "numbers"
        after = _read_cursor(request.query("after"))
        self._pages = ResultPages(store, bulk_id=bulk_id, tenant_id=tenant_id, after=after)
        self._wait_seconds = request.seconds("wait")

    async def run(self) -> None:
        """Send what there is, then what comes; end with the bulk, after a wait in vain, or when the reader leaves."""
        media = results.FRAMES_TYPE if self._binary else MEDIA_NDJSON
        # X-Accel-Buffering asks proxies to pass the lines on as they come.
        await self._request.begin(
            200, [(b"content-type", media.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
        )
        stream = asyncio.ensure_future(self._send_all())
        watch = asyncio.ensure_future(self._request.hang_up())
        try:
            await asyncio.wait((stream, watch), return_when=asyncio.FIRST_COMPLETED)
            if stream.done():
                stream.result()
                await self._request.piece(b"", more=False)
        finally:
            stream.cancel()
            watch.cancel()
            await asyncio.gather(stream, watch, return_exceptions=True)

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_seconds
        sign_of_life = loop.time() + SIGN_OF_LIFE_SECONDS
        with self._waiting.pace() as pace:
            while True:
                await self._request.room(PAGE_BYTES)
                pace.look()
                page, packed = await loop.run_in_executor(self._pool, self._read)
                if page is not None:
                    await self._request.piece(packed)
                    sign_of_life = loop.time() + SIGN_OF_LIFE_SECONDS
                    if page.finished:
                        return
                    if page.records:
                        pace.found()
                        end = loop.time() + self._wait_seconds
                        await pace.keep_apart(APART_SECONDS)
                    continue
                left = end - loop.time()
                if left <= 0 or self._waiting.is_draining:
                    await self._request.piece(self._pack(Frame(self._pages.cursor, False)))
                    return
                if loop.time() >= sign_of_life:
                    await self._request.piece(self._pack(Frame(self._pages.cursor, False)))
                    sign_of_life = loop.time() + SIGN_OF_LIFE_SECONDS
                await pace.rest(min(left, sign_of_life - loop.time()))

    def _read(self) -> tuple[Frame | None, bytes]:
        """The next page and how it travels; None where there is nothing new. In a thread."""
        page = self._pages.next()
        return page, b"" if page is None else self._pack(page)

    def _pack(self, page: Frame) -> bytes:
        if self._binary:
            return results.pack_frame(page)
        return ndjson(page.records, cursor=page.cursor, finished=page.finished, tensors=self._tensors)


def _read_cursor(text: str | None) -> int:
    if text is None or text == "":
        return 0
    if not text.isdecimal() or len(text) > 18:
        raise InvalidRequest(f"`after` is {text[:40]!r}; it must be a cursor from an earlier answer")
    return int(text)
