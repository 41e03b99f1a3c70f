"""Pools, their live consumers, and what was decided about their size; the number that KEDA asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
from starlette.responses import Response

from batchyard import rendering, schemas
from batchyard.errors import InvalidRequest, NotFound
from batchyard.jobs import format_id
from batchyard.keda import SCALE_PATH
from batchyard.pool_figures import first_hour_of_month
from batchyard.schemas import optional_rfc3339, rfc3339
from batchyard.settings import PoolSettings
from batchyard.store.base import ConsumerInfo, PoolOverride
from batchyard.store.records import followed
from batchyard_producer.bodies import read_struct
from batchyard_producer.calls import Asked, Call, Handler, answer
from batchyard_producer.services import Services


async def list_pools(asked: Asked) -> Response:
    return answer(schemas.PoolList(pools=await shown_pools(asked.services)))


async def shown_pools(services: Services) -> list[schemas.Pool]:
    """The configured pools, each with the consumers that were alive at the last refresh of the catalog."""
    return await services.call(_shown_pools, services)


def _shown_pools(services: Services) -> list[schemas.Pool]:
    store, snapshot = services.store, services.catalog.snapshot
    now_ms = store.now_ms()
    decided = {made.pool: rendering.decision(made, now_ms=now_ms) for made in store.decisions()}
    overrides = store.overrides()
    spent = store.spent(since_hour=first_hour_of_month(now_ms))
    names = {number: version.name for version in snapshot.versions for number in version.queue_ids.values()}
    return [
        schemas.Pool(
            name=pool.name,
            capacity=pool.capacity,
            device=pool.device,
            models=list(pool.models),
            min=pool.min,
            max=pool.max,
            price_per_hour=pool.price_per_hour,
            consumers=[_consumer(info, names) for info in snapshot.consumers if info.pool == pool.name],
            decision=decided.get(pool.name),
            pinned=override.pinned,
            paused=override.is_paused,
            spent=rendering.spend(spent, pool=pool, now_ms=now_ms),
        )
        for pool in services.settings.pools
        for override in (overrides.get(pool.name) or PoolOverride(pool=pool.name),)
    ]


async def pin(asked: Asked) -> Response:
    pool = _configured(asked)
    wanted = await read_struct(asked, schemas.PinRequest)
    if wanted.replicas > pool.max:
        raise InvalidRequest(f"replicas is {wanted.replicas}: must be at most {pool.max}, the max of {pool.name}")
    return await _changed(asked, pool, asked.services.store.pin_pool, replicas=wanted.replicas)


async def unpin(asked: Asked) -> Response:
    return await _changed(asked, _configured(asked), asked.services.store.pin_pool, replicas=None)


async def pause(asked: Asked) -> Response:
    return await _changed(asked, _configured(asked), asked.services.store.set_pool_paused, paused=True)


async def resume(asked: Asked) -> Response:
    return await _changed(asked, _configured(asked), asked.services.store.set_pool_paused, paused=False)


async def _changed(asked: Asked, pool: PoolSettings, change: Callable[..., None], **values: object) -> Response:
    await asked.services.call(change, pool.name, **values)
    return answer(next(shown for shown in await shown_pools(asked.services) if shown.name == pool.name))


def _configured(asked: Asked) -> PoolSettings:
    name, pools = asked.path_text("pool"), asked.services.settings.pools
    for pool in pools:
        if pool.name == name:
            return pool
    raise NotFound(f'there is no pool "{name[:64]}"', allowed=sorted(pool.name for pool in pools))


async def scale(asked: Asked) -> Response:
    """Without a fresh decision no number: KEDA then keeps what is there, and would follow a stale one down to zero."""
    services, name = asked.services, _configured(asked).name
    made = next((made for made in await services.call(services.store.decisions) if made.pool == name), None)
    now_ms = services.store.now_ms()
    return answer(rendering.decision(followed(made, pool=name, now_ms=now_ms), now_ms=now_ms))


def _consumer(info: ConsumerInfo, names: Mapping[int, str]) -> schemas.Consumer:
    return schemas.Consumer(
        id=format_id(info.id),
        pool=info.pool,
        host=info.host,
        pid=info.pid,
        device=info.device,
        capacity=info.capacity,
        state=info.state,
        started_at=rfc3339(info.started_at_ms),
        models=_once(names[number] for number in info.queue_ids if number in names),
        ready_at=optional_rfc3339(info.ready_at_ms),
        zone=info.zone or None,
        preempted_at=optional_rfc3339(info.preempted_at_ms),
        # The samples are for /metrics, and large.
        stats={name: value for name, value in info.stats.items() if name != "samples"},
    )


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _steering(
    verb: str, summary: str, about: str, handler: Handler, *, body: type[msgspec.Struct] | None = None
) -> Call:
    return Call(
        method="POST",
        path=f"/v1/pools/{{pool}}/{verb}",
        summary=summary,
        about=about,
        tag="pools",
        handler=handler,
        scope="admin",
        body=body,
        answer=schemas.Pool,
        errors=(NotFound,) if body is None else (InvalidRequest, NotFound),
    )


CALLS = (
    Call(
        method="GET",
        path="/v1/pools",
        summary="All pools with their live consumers and the scaler's last decision",
        tag="pools",
        handler=list_pools,
        answer=schemas.PoolList,
    ),
    Call(
        method="GET",
        path=SCALE_PATH,
        summary="How many replicas a pool should have now",
        about="For KEDA's trigger metrics-api: `replicas`. 503 while no scaler has decided for a minute.",
        tag="pools",
        handler=scale,
        scope="scale",
        answer=schemas.PoolScale,
        errors=(NotFound,),
    ),
    _steering(
        "pin",
        "Fix the number of a pool's replicas",
        "Whatever there is to do, until it is unpinned; at most the pool's max.",
        pin,
        body=schemas.PinRequest,
    ),
    _steering("unpin", "Let the scaler decide again", "", unpin),
    _steering("pause", "Want no replicas of a pool", "Its consumers drain; jobs are still accepted.", pause),
    _steering("resume", "Let a pool have replicas again", "", resume),
)
