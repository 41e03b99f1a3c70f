"""The routes that carry the load, as raw ASGI in front of the router, which answers everything else.

POST /v1/models/{model}/jobs    POST /v1/bulks/{id}/jobs      → submitting.py
GET  /v1/jobs/{id}              POST /v1/jobs/lookup
GET  /v1/bulks/{id}/results                                   → reading.py
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from batchyard.errors import BatchyardError
from batchyard.telemetry import ApiMetrics
from batchyard_producer import problems
from batchyard_producer.intake import Gone, Receive, Request, Room, Scope
from batchyard_producer.problems import Send
from batchyard_producer.reading import Reading
from batchyard_producer.submitting import Submitting

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SUBMIT = "/v1/models/{model}/jobs"
CHUNK = "/v1/bulks/{id}/jobs"
LOOKUP = "/v1/jobs/lookup"
JOB = "/v1/jobs/{id}"
RESULTS = "/v1/bulks/{id}/results"


class HotRoutes:
    """An ASGI application that answers the hot routes itself and hands the rest on."""

    def __init__(
        self, app: Application, *, submitting: Submitting, reading: Reading, metrics: ApiMetrics, room: Room
    ) -> None:
        self._app = app
        self._room = room
        self._submitting = submitting
        self._reading = reading
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = scope["method"]
            found = (
                self._post(scope["path"]) if method == "POST" else self._get(scope["path"]) if method == "GET" else None
            )
            if found is not None:
                request = Request(scope, receive, send, room=self._room)
                route, handle = found
                await self._answer(request, send, route=route, handle=handle)
                return
        await self._app(scope, receive, send)

    def _post(self, path: str) -> tuple[str, Handler] | None:
        if path.endswith("/jobs"):
            if path.startswith("/v1/models/") and len(path) > 16:
                model = path[11:-5]
                return SUBMIT, lambda request: self._submitting.jobs(request, model)
            if path.startswith("/v1/bulks/") and path.count("/") == 4:
                bulk = path[10:-5]
                return CHUNK, lambda request: self._submitting.chunk(request, bulk)
        elif path == LOOKUP:
            return LOOKUP, self._reading.lookup
        return None

    def _get(self, path: str) -> tuple[str, Handler] | None:
        if path.startswith("/v1/jobs/") and path.count("/") == 3:
            return JOB, lambda request: self._reading.job(request, path[9:])
        if path.startswith("/v1/bulks/") and path.endswith("/results") and path.count("/") == 4:
            return RESULTS, lambda request: self._reading.results(request, path[10:-8])
        return None

    async def _answer(self, request: Request, send: Send, *, route: str, handle: Handler) -> None:
        began = time.perf_counter()
        try:
            await handle(request)
        except Gone:
            request.status = request.status or 499  # as nginx counts a client that hung up
        except Exception as failure:
            if request.status:
                raise  # midway through an answer: all that is left is to break it off
            error = problems.as_error(failure)
            request.status = error.status
            self._count_refusal(route, error)
            await problems.answer(send, error)
        finally:
            request.forget()
            elapsed = time.perf_counter() - began
            self._metrics.requests.count(request.method, route, request.status or 500, elapsed)

    def _count_refusal(self, route: str, error: BatchyardError) -> None:
        if route in {SUBMIT, CHUNK}:
            self._metrics.refused_submissions.labels(error.code).inc()


Handler = Callable[[Request], Coroutine[Any, Any, None]]
