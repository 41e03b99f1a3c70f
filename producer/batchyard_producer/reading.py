"""The raw routes that read jobs: GET /v1/jobs/{id}, POST /v1/jobs/lookup and GET /v1/bulks/{id}/results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec

from batchyard import rendering, schemas
from batchyard.catalog import Catalog
from batchyard.errors import Gone, InvalidRequest, NotFound
from batchyard.jobs import State, format_id, parse_id
from batchyard.rendering import Form
from batchyard.results import TensorRendering
from batchyard.schemas import MAX_WAIT_SECONDS, JobList, LookupAnswer, LookupRequest
from batchyard.settings import ServerSettings
from batchyard.store.base import JobStore, JobView
from batchyard.submission import read_envelope
from batchyard_producer.auth import Gate, Identity
from batchyard_producer.intake import JSON_HEADERS, Request
from batchyard_producer.problems import Headers
from batchyard_producer.streaming import ResultStream
from batchyard_producer.waiting import SharedReads, Until, Views, Waiting

T = TypeVar("T")

INLINE_JOBS = 32
"""More jobs are rendered in a thread, so that other requests are answered meanwhile."""
INLINE_RESULT_BYTES = 64 * 1024

_decode_lookup = msgspec.json.Decoder(LookupRequest).decode


class Reading:
    """Owned by the event loop."""

    def __init__(
        self,
        *,
        store: JobStore,
        catalog: Catalog,
        reads: SharedReads,
        waiting: Waiting,
        gate: Gate,
        server: ServerSettings,
        pool: ThreadPoolExecutor,
        stream_pool: ThreadPoolExecutor,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._reads = reads
        self._waiting = waiting
        self._gate = gate
        self._server = server
        self._pool = pool
        self._stream_pool = stream_pool

    # --- routes ---

    async def job(self, request: Request, text: str) -> None:
        """GET /v1/jobs/{id}?wait=S&tensors=numbers|base64."""
        identity = self._gate.known(request.headers) or await self._gate.identify(request.headers)
        identity.require("jobs")
        number = parse_id(text)
        if number is None:
            raise NotFound(f"there is no job {text[:40]!r}")
        seconds = request.seconds("wait")
        views = await self._views(request, [number], identity=identity, seconds=seconds)
        view = views.get(number) or await self._missing(number, tenant_id=identity.tenant_id)
        await self._answer(request, 200, view, headers=JSON_HEADERS)

    async def lookup(self, request: Request) -> None:
        """POST /v1/jobs/lookup."""
        identity = self._gate.known(request.headers) or await self._gate.identify(request.headers)
        identity.require("jobs")
        asked = read_envelope(_decode_lookup, await request.body(limit=self._server.max_body_bytes))
        numbers = {text: parse_id(text) for text in asked.ids}
        ids = [number for number in numbers.values() if number is not None]
        seconds = min(asked.wait, MAX_WAIT_SECONDS)
        views = await self._views(
            request, ids, identity=identity, seconds=seconds, until=asked.until, results=asked.results
        )
        absent = [text for text, number in numbers.items() if number not in views]
        retired = await self._retired([number for number in ids if number not in views], tenant_id=identity.tenant_id)
        answer = partial(
            self._lookup_answer,
            [views[number] for number in ids if number in views],
            missing=[text for text in absent if numbers[text] not in retired],
            retired=[text for text in absent if numbers[text] in retired],
            form=rendering.form_of(request.header(b"accept") or ""),
            tensors=_tensors(request),
        )
        body = answer() if len(ids) <= INLINE_JOBS else await self._in_thread(answer)
        await request.answer(200, body, _media(request, JSON_HEADERS))

    async def results(self, request: Request, text: str) -> None:
        """GET /v1/bulks/{id}/results?after=CURSOR&wait=S."""
        identity = self._gate.known(request.headers) or await self._gate.identify(request.headers)
        identity.require("jobs")
        number = parse_id(text)
        if number is None:
            raise NotFound(f"there is no bulk {text[:40]!r}")
        await self._in_thread(partial(self._store.get_bulk, number, tenant_id=identity.tenant_id))
        stream = ResultStream(
            request,
            store=self._store,
            waiting=self._waiting,
            pool=self._stream_pool,
            bulk_id=number,
            tenant_id=identity.tenant_id,
        )
        await stream.run()

    # --- for the routes that submit ---

    async def view(self, number: int, *, tenant_id: int, results: bool = True) -> JobView:
        """One job; NotFound, or Gone."""
        views = await self._reads.jobs([number], tenant_id=tenant_id, results=results)
        return views.get(number) or await self._missing(number, tenant_id=tenant_id)

    async def answer_after_wait(
        self,
        request: Request,
        ids: list[int],
        *,
        identity: Identity,
        seconds: float,
        several: bool,
        headers: Headers,
    ) -> None:
        """200 with jobs just submitted if all end in time, else 202 with them as they stand."""
        views = await self._views(request, ids, identity=identity, seconds=seconds)
        is_done = len(views) == len(ids) and all(view.state.is_terminal for view in views.values())
        status = 200 if is_done else 202
        if is_done:
            headers = [header for header in headers if header[0] != b"retry-after"]
        if not several:
            view = views.get(ids[0]) or await self._missing(ids[0], tenant_id=identity.tenant_id)
            await self._answer(request, status, view, headers=headers)
            return
        form, tensors = rendering.form_of(request.header(b"accept") or ""), _tensors(request)
        found = [views[number] for number in ids if number in views]
        body = await self._in_thread(
            lambda: rendering.encode(JobList(jobs=self._documents(found, form=form, tensors=tensors)), form)
        )
        await request.answer(status, body, _media(request, headers))

    # --- steps ---

    async def _views(
        self,
        request: Request,
        ids: Sequence[int],
        *,
        identity: Identity,
        seconds: float,
        until: Until = "all",
        results: bool = True,
    ) -> Views:
        if not ids:
            return {}
        if seconds <= 0:
            return await self._reads.jobs(ids, tenant_id=identity.tenant_id, results=results)
        return await request.unless_gone(
            self._waiting.jobs(ids, tenant_id=identity.tenant_id, seconds=seconds, until=until, results=results)
        )

    async def _answer(self, request: Request, status: int, view: JobView, *, headers: Headers) -> None:
        """Answer with one job, and with why it waits where it does."""
        position = None
        if view.state == State.QUEUED:
            position = await self._in_thread(partial(self._store.position, view.id))
        form, tensors = rendering.form_of(request.header(b"accept") or ""), _tensors(request)
        render = partial(self._document, view, position=position, form=form, tensors=tensors)
        is_small = view.result_body is None or len(view.result_body) <= INLINE_RESULT_BYTES
        document = render() if is_small else await self._in_thread(render)
        headers = _media(request, headers)
        if not view.state.is_terminal and status == 200:
            headers = [*headers, (b"retry-after", b"1")]
        await request.answer(status, rendering.encode(document, form), headers)

    def _document(
        self, view: JobView, *, position: int | None = None, form: Form, tensors: TensorRendering
    ) -> schemas.Job:
        load, now_ms = self._catalog.load(view.queue_id), self._store.now_ms()
        return rendering.job(view, load=load, now_ms=now_ms, position=position, form=form, tensors=tensors)

    def _documents(self, views: Sequence[JobView], *, form: Form, tensors: TensorRendering) -> list[schemas.Job]:
        return [self._document(view, form=form, tensors=tensors) for view in views]

    def _lookup_answer(
        self,
        views: Sequence[JobView],
        *,
        missing: list[str],
        retired: list[str],
        form: Form,
        tensors: TensorRendering,
    ) -> bytes:
        jobs = self._documents(views, form=form, tensors=tensors)
        return rendering.encode(LookupAnswer(jobs=jobs, missing=missing, retired=retired), form)

    async def _missing(self, number: int, *, tenant_id: int) -> JobView:
        """Say why there is no such job: Gone, or NotFound."""
        if await self._retired([number], tenant_id=tenant_id):
            raise Gone(f"job {format_id(number)} was retired: its result is no longer kept")
        raise NotFound(f"there is no job {format_id(number)}")

    async def _retired(self, ids: Sequence[int], *, tenant_id: int) -> set[int | None]:
        if not ids:
            return set()
        return set(await self._in_thread(partial(self._store.retired_among, ids, tenant_id=tenant_id)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _tensors(request: Request) -> TensorRendering:
    asked = request.query("tensors")
    if asked is None:
        return "numbers"
    if asked not in {"numbers", "base64"}:
        raise InvalidRequest(f"tensors is {asked[:40]!r}", allowed=["numbers", "base64"])
    return "base64" if asked == "base64" else "numbers"


def _media(request: Request, headers: Headers) -> Headers:
    """The headers with the media type that the reader asked for."""
    if rendering.form_of(request.header(b"accept") or "") == "json":
        return headers
    kept = [header for header in headers if header[0] != b"content-type"]
    return [(b"content-type", rendering.MEDIA_MSGPACK.encode()), *kept]
