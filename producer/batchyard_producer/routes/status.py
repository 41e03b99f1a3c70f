"""The whole system at one moment; liveness, readiness, metrics."""

from __future__ import annotations

from importlib import metadata

from starlette.responses import Response

from batchyard import exposition, schemas
from batchyard.catalog import QueueLoad
from batchyard.jobs import State
from batchyard.rendering import age_seconds
from batchyard.schemas import rfc3339
from batchyard_producer.calls import Asked, Call, answer
from batchyard_producer.routes.pools import shown_pools
from batchyard_producer.services import Services

ROLES: dict[bool | None, str] = {True: "leader", False: "follower", None: "unknown"}


async def status(asked: Asked) -> Response:
    services = asked.services
    await services.call(services.catalog.refresh, older_than_seconds=0.5)
    oldest_ms = await services.call(services.store.oldest_queued_ms)
    finished = await services.call(_finished, services)
    now_ms = services.store.now_ms()
    queues = [
        _queue(load, finished=finished.get(number, {}), oldest_ms=oldest_ms.get(number), now_ms=now_ms)
        for number, load in services.catalog.snapshot.queues.items()
    ]
    return answer(
        schemas.Status(
            time=rfc3339(now_ms),
            version=metadata.version("batchyard"),
            database=await services.call(services.store.durability),
            broker="up" if services.broker.is_up else "down",
            role=ROLES[services.dispatcher.is_leader],  # type: ignore[arg-type]
            queues=queues,
            pools=await shown_pools(services),
        )
    )


def _finished(services: Services) -> dict[int, dict[str, int]]:
    """Queue → state → jobs that ended and are still kept."""
    counts: dict[int, dict[str, int]] = {}
    for row in services.store.backlog():
        if row.state.is_terminal:
            of_queue = counts.setdefault(row.queue_id, {})
            of_queue[row.state.word] = of_queue.get(row.state.word, 0) + row.jobs
    return counts


def _queue(load: QueueLoad, *, finished: dict[str, int], oldest_ms: int | None, now_ms: int) -> schemas.QueueStatus:
    return schemas.QueueStatus(
        model=load.version.name,
        lane=load.lane.word,  # type: ignore[arg-type]
        queued=load.queued,
        waiting=load.waiting,
        running=load.running,
        finished={state.word: finished[state.word] for state in State if state.word in finished},  # type: ignore[misc]
        paused=load.is_paused,
        consumers=load.ready,
        starting=load.starting,
        jobs_per_second=None if load.jobs_per_second is None else round(load.jobs_per_second, 3),
        backlog_seconds=load.backlog_seconds,
        oldest_queued_seconds=age_seconds(oldest_ms, now_ms=now_ms),
        load_error=load.version.load_error,
    )


async def healthz(asked: Asked) -> Response:
    return answer(schemas.Health(status="ok"))


async def readyz(asked: Asked) -> Response:
    """The database must take a write, its schema must fit, and the leader must be known; without a broker jobs are
    still taken and run."""
    services = asked.services
    role = ROLES[services.dispatcher.is_leader]
    database = await services.readiness.database()
    checks = {**database, "role": role, "broker": "up" if services.broker.is_up else "down"}
    ready = database["database"] == "ok" and role != "unknown"
    return answer(schemas.Health(status="ok" if ready else "unavailable", checks=checks), status=200 if ready else 503)


async def metrics(asked: Asked) -> Response:
    body = await asked.services.call(exposition.render, asked.services.registry)
    return Response(body, headers={"content-type": exposition.CONTENT_TYPE})


CALLS = (
    Call(
        method="GET",
        path="/v1/status",
        summary="The whole system at one moment",
        about="What `batchyard status` and `batchyard top` show; its counts are over all tenants.",
        tag="operation",
        handler=status,
        scope="metrics",
        answer=schemas.Status,
    ),
    Call(
        method="GET",
        path="/healthz",
        summary="Whether the process lives",
        tag="operation",
        handler=healthz,
        scope=None,
        answer=schemas.Health,
    ),
    Call(
        method="GET",
        path="/readyz",
        summary="Whether requests should be sent here",
        about="503, with the same body, while the database takes no write, its schema does not fit, or no leader is "
        "known. What was found holds for a second.",
        tag="operation",
        handler=readyz,
        scope=None,
        answer=schemas.Health,
        more_answers=((503, "not ready", schemas.Health),),
    ),
    Call(
        method="GET",
        path="/metrics",
        summary="Metrics for Prometheus",
        about="Of this process, of the database's queues, and of live consumers with the labels `consumer` and `pool`.",
        tag="operation",
        handler=metrics,
        scope="metrics",
        answer_media=("text/plain",),
    ),
)
