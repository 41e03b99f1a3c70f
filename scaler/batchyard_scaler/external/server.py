"""`externalscaler.ExternalScaler`: every replica of the scaler answers KEDA from the decisions in the store.

Whoever reaches the port may learn how many replicas a pool should have, and change nothing: there are no keys, and the
rendered manifests let KEDA's namespace alone in.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import grpc
import grpc.aio

from batchyard.errors import Unavailable
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_scaler.external import externalscaler_pb2 as messages
from batchyard_scaler.external.decisions import Decisions, UnknownPool

SERVICE = "externalscaler.ExternalScaler"
METRIC = "replicas"
"""KEDA gives it a prefix of its own."""
SERVING = b"\x08\x01"
"""`grpc.health.v1.HealthCheckResponse` with the status SERVING."""
END_SECONDS = 1.0
START_SECONDS = 10.0

log = logging.getLogger(__name__)


class ExternalScaler:
    """The calls of the contract. Owned by one event loop."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    async def is_active(self, ref: messages.ScaledObjectRef, context: Any) -> messages.IsActiveResponse:
        return messages.IsActiveResponse(result=await self._replicas(ref, context) > 0)

    async def stream_is_active(
        self, ref: messages.ScaledObjectRef, context: Any
    ) -> AsyncIterator[messages.IsActiveResponse]:
        """Every change, beginning with how it is now; nothing while there is no fresh decision."""
        pool = await self._pool(ref, context)
        told: bool | None = None
        async for _ in self._decisions.changes():
            try:
                is_active = self._decisions.replicas(pool) > 0
            except Unavailable:
                continue
            if is_active != told:
                told = is_active
                yield messages.IsActiveResponse(result=is_active)

    async def get_metric_spec(self, ref: messages.ScaledObjectRef, context: Any) -> messages.GetMetricSpecResponse:
        """Needs no decision: were this to fail, KEDA would not come to its fallback."""
        await self._pool(ref, context)
        return messages.GetMetricSpecResponse(metricSpecs=[messages.MetricSpec(metricName=METRIC, targetSize=1)])

    async def get_metrics(self, request: messages.GetMetricsRequest, context: Any) -> messages.GetMetricsResponse:
        replicas = await self._replicas(request.scaledObjectRef, context)
        value = messages.MetricValue(metricName=request.metricName or METRIC, metricValue=replicas)
        return messages.GetMetricsResponse(metricValues=[value])

    async def _replicas(self, ref: messages.ScaledObjectRef, context: Any) -> int:
        pool = await self._pool(ref, context)
        try:
            return self._decisions.replicas(pool)
        except Unavailable as none:
            await _refuse(context, grpc.StatusCode.UNAVAILABLE, none.message)

    async def _pool(self, ref: messages.ScaledObjectRef, context: Any) -> str:
        try:
            return self._decisions.known(ref.scalerMetadata.get("pool", ""))
        except UnknownPool as unknown:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, str(unknown))


async def _refuse(context: Any, code: grpc.StatusCode, reason: str) -> NoReturn:
    await context.abort(code, reason)
    raise AssertionError("abort raises")


@contextmanager
def serving(store: JobStore, *, pools: Sequence[str], bind: str) -> Iterator[int]:
    """Serve on a thread of its own while the block runs; gives the port. Unavailable where it is taken."""
    server = _Server(Decisions(store, pools=pools), bind=bind)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


class _Server:
    """The event loop's thread: asyncio holds a stream per pool without a thread for each."""

    def __init__(self, decisions: Decisions, *, bind: str) -> None:
        self._decisions = decisions
        self._bind = bind
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._fault: Exception | None = None
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="external-scaler", daemon=True)
        self.port = 0

    def start(self) -> None:
        self._thread.start()
        self._started.wait(START_SECONDS)
        if not self.port:
            raise Unavailable(
                f'--grpc-bind "{self._bind}" cannot be served: give an address of this machine, and a port that is free'
            ) from self._fault
        log_event(log, "external_scaler_serves", bind=self._bind, port=self.port)

    def stop(self) -> None:
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(END_SECONDS * 5)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except (OSError, RuntimeError) as error:
                if self._started.is_set():
                    raise
                self._fault = error
            finally:
                self._started.set()

    async def _serve(self) -> None:
        # Else a port that another process serves would be shared with it.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_handlers(ExternalScaler(self._decisions)), _health()))
        self.port = server.add_insecure_port(self._bind)
        await server.start()
        self._started.set()
        # Should the reading ever end, so does the serving: a probe that fails has the process started anew.
        tasks = [asyncio.create_task(body) for body in (self._decisions.run(), self._stopping.wait())]
        ended, going = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await server.stop(END_SECONDS)
        for task in going:
            task.cancel()
        for task in ended:
            task.result()


def _handlers(scaler: ExternalScaler) -> Any:
    def unary(call: Callable[..., Any], request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=request.FromString, response_serializer=_serialized
        )

    stream = grpc.unary_stream_rpc_method_handler(
        scaler.stream_is_active,
        request_deserializer=messages.ScaledObjectRef.FromString,
        response_serializer=_serialized,
    )
    calls = {
        "IsActive": unary(scaler.is_active, messages.ScaledObjectRef),
        "StreamIsActive": stream,
        "GetMetricSpec": unary(scaler.get_metric_spec, messages.ScaledObjectRef),
        "GetMetrics": unary(scaler.get_metrics, messages.GetMetricsRequest),
    }
    return grpc.method_handlers_generic_handler(SERVICE, calls)


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _health() -> Any:
    """For the probes of Kubernetes. Serving whatever the database does: a Service without endpoints would keep
    GetMetricSpec from KEDA."""

    async def check(_request: bytes, _context: Any) -> bytes:
        return SERVING

    return grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
