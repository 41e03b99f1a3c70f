"""One API process: its parts, their life, and the application in front of them.

Requests meet the hot routes first, as raw ASGI; what these do not know goes to the router. Everything that blocks runs
in threads: a pool for calls to the database, another for the streams of results, and one thread each for the group
commit, the catalog, the hints, the dispatcher, the sweep of payloads and the delivery of webhooks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from batchyard.broker import Broker, Hints, queue_name
from batchyard.catalog import Catalog
from batchyard.errors import BatchyardError, InvalidRequest, MethodNotAllowed, NotFound
from batchyard.jobs import IdSource
from batchyard.payloads import open_objects
from batchyard.redriving import Redriver
from batchyard.settings import ModelSettings, Settings
from batchyard.store.base import JobStore, ModelConfig
from batchyard.submission import Submitter
from batchyard.telemetry import ApiMetrics, DispatcherMetrics, StoreCollector, WebhookMetrics, new_registry
from batchyard.ticketing import TicketPublisher
from batchyard_producer import documentation, openapi
from batchyard_producer.announcing import Announcer
from batchyard_producer.auth import Gate, keys_required
from batchyard_producer.calls import MEDIA_JSON, Call, refusal, routes
from batchyard_producer.dispatcher import Dispatcher, Timing
from batchyard_producer.group_commit import GroupCommit
from batchyard_producer.hot import HotRoutes
from batchyard_producer.intake import Room
from batchyard_producer.payload_sweep import PayloadSweep
from batchyard_producer.readiness import Readiness
from batchyard_producer.reading import Reading
from batchyard_producer.routes import bulks, hot, jobs, keys, models, payloads, pools, redrives, status, webhooks
from batchyard_producer.services import Services
from batchyard_producer.submitting import Submitting
from batchyard_producer.waiting import SharedReads, Waiting
from batchyard_producer.webhook_delivery import WebhookDelivery

CALLS: tuple[Call, ...] = (
    *hot.CALLS,
    *jobs.CALLS,
    *redrives.CALLS,
    *bulks.CALLS,
    *payloads.CALLS,
    *models.CALLS,
    *pools.CALLS,
    *keys.CALLS,
    *webhooks.CALLS,
    *status.CALLS,
)
"""Every call of the API."""

THREADS = 12
STREAM_THREADS = 4


class Api:
    """One API process. `start` and `stop` run on the event loop that serves `application`."""

    def __init__(self, settings: Settings, *, store: JobStore, broker: Broker, timing: Timing | None = None) -> None:
        """`timing` is the dispatcher's."""
        registry = new_registry()
        self._store = store
        self._settings = settings
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batchyard-api")
        self._stream_threads = ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="batchyard-stream")
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._metrics = ApiMetrics(registry)
        self._catalog = Catalog(
            store, max_queued=settings.queues.max_queued, pools=settings.pools, limits=settings.limits
        )
        self._catalog_thread = threading.Thread(
            target=self._catalog.run, args=(self._stop,), name="batchyard-catalog", daemon=True
        )
        counted = DispatcherMetrics(registry, tickets=self._metrics.tickets)
        self._dispatcher = Dispatcher(store, broker, settings, metrics=counted, timing=timing)
        objects = open_objects(settings)
        self._payload_sweep = PayloadSweep(
            store,
            objects,
            settings.retention,
            leads=lambda: self._dispatcher.is_leader,
            every_seconds=(timing or Timing()).payloads,
            metrics=counted,
        )
        self._webhooks = WebhookDelivery(
            store,
            self._catalog,
            settings.webhooks,
            metrics=WebhookMetrics(registry),
            every_seconds=(timing or Timing()).webhooks,
        )
        self._publisher = TicketPublisher(
            broker,
            names=self._broker_name,
            link=self._dispatcher.link,
            wake=self._dispatcher.notify,
            metrics=self._metrics.tickets,
        )
        self._reads = SharedReads(store, self._threads)
        # SQLite numbers a flush as it commits it.
        shows_late = not settings.database.url.startswith("sqlite")
        self._waiting = Waiting(store, reads=self._reads, pool=self._threads, shows_late=shows_late)
        self._metrics.waiters.set_function(lambda: self._waiting.waiters)
        self._hints = Hints(broker, self._hear, on_gap=self._waiting.sweep_soon)
        announcer = Announcer(catalog=self._catalog, metrics=self._metrics, publisher=self._publisher)
        self._commit = GroupCommit(store, after_commit=announcer)
        registry.register(StoreCollector(store))
        submitter = Submitter(self._catalog, server=settings.server, queues=settings.queues, webhooks=settings.webhooks)
        self._services = Services(
            settings=settings,
            store=store,
            broker=broker,
            dispatcher=self._dispatcher,
            catalog=self._catalog,
            submitter=submitter,
            redriver=Redriver(store, catalog=self._catalog, submitter=submitter),
            commit=self._commit,
            gate=Gate(store, keys_required=keys_required(settings.server), limiter=self._catalog.limiter),
            objects=objects,
            payload_ids=IdSource(store.take_node()),
            registry=registry,
            metrics=self._metrics,
            readiness=Readiness(self._probe),
            room=Room(max_body_bytes=settings.server.max_body_bytes),
            threads=self._threads,
        )
        self.application = self._hot_routes(self._router())

    # --- life ---

    async def start(self) -> None:
        """Make the configured models known, then begin; Unavailable without a database."""
        self._loop = loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._store.sync_models, model_configs(self._settings.models))
        await loop.run_in_executor(self._threads, self._catalog.refresh)
        self._commit.start(loop)
        self._waiting.start(loop)
        parts = (self._publisher, self._hints, self._catalog_thread, self._dispatcher, self._payload_sweep)
        for part in (*parts, self._webhooks):
            part.start()

    def drain(self) -> None:
        """No request has to wait any more: long polls answer with what they know. Any thread, or a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._waiting.drain)

    async def stop(self) -> None:
        """Commit what was accepted, publish its tickets, hand leadership on, and end every thread."""
        self._stop.set()
        await self._waiting.close()
        await asyncio.to_thread(self._commit.close)
        closing = (
            self._publisher.close,
            self._dispatcher.close,
            self._payload_sweep.close,
            self._webhooks.close,
            self._hints.close,
            self._catalog_thread.join,
        )
        await asyncio.gather(*(asyncio.to_thread(close) for close in closing))
        self._threads.shutdown(cancel_futures=True)
        self._stream_threads.shutdown(cancel_futures=True)

    def _hear(self, ids: list[int]) -> None:
        """A completion hint, on the thread that listens."""
        self._waiting.hint(ids)
        self._dispatcher.hinted(ids)

    def _broker_name(self, queue_id: int) -> str | None:
        load = self._catalog.snapshot.queues.get(queue_id)
        return None if load is None else queue_name(load.version.model, load.version.version, load.lane)

    async def _probe(self) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._store.probe)

    # --- the application ---

    def _router(self) -> Starlette:
        document = openapi.document(CALLS, version=metadata.version("batchyard"))
        return Starlette(
            routes=[*routes(CALLS, self._services), *_documents(document)],
            exception_handlers={HTTPException: _no_route},
            lifespan=self._lifespan,
        )

    def _hot_routes(self, router: Starlette) -> HotRoutes:
        gate, server = self._services.gate, self._settings.server
        reading = Reading(
            store=self._store,
            catalog=self._catalog,
            reads=self._reads,
            waiting=self._waiting,
            gate=gate,
            server=server,
            pool=self._threads,
            stream_pool=self._stream_threads,
        )
        submitting = Submitting(
            store=self._store,
            catalog=self._catalog,
            submitter=self._services.submitter,
            commit=self._commit,
            reading=reading,
            gate=gate,
            server=server,
            pool=self._threads,
            allowance=self._dispatcher.allowance,
        )
        return HotRoutes(
            router, submitting=submitting, reading=reading, metrics=self._metrics, room=self._services.room
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()


def model_configs(models: Sequence[ModelSettings]) -> list[ModelConfig]:
    """The configured models as the store is told of them."""
    return [
        ModelConfig(
            model=model.name,
            version=model.version,
            runtime=model.runtime,
            weight=model.weight,
            default_lane=model.lane,
        )
        for model in models
    ]


def _documents(document: dict[str, Any]) -> list[Route]:
    """/openapi.json and /docs, rendered once."""
    body = msgspec.json.encode(document)
    page = documentation.page(document)

    async def as_json(_: Request) -> Response:
        return Response(body, media_type=MEDIA_JSON)

    async def as_page(_: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]


async def _no_route(request: Request, failure: Exception) -> Response:
    """What the router itself refuses."""
    assert isinstance(failure, HTTPException)
    error: BatchyardError = InvalidRequest(failure.detail)
    if failure.status_code == 404:
        error = NotFound(f"there is nothing at {request.url.path[:200]}; GET /docs shows what there is")
    elif failure.status_code == 405:
        error = MethodNotAllowed(f"{request.method} is not allowed here", allowed=["GET"])
    return refusal(error)
