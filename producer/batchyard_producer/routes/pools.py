"""Pools, their live consumers, and what was decided about their size; the number that KEDA asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import Response

from batchyard import rendering, schemas
from batchyard.errors import NotFound, Unavailable
from batchyard.jobs import format_id
from batchyard.keda import SCALE_PATH
from batchyard.schemas import optional_rfc3339, rfc3339
from batchyard.store.base import ConsumerInfo
from batchyard_producer.calls import Asked, Call, answer
from batchyard_producer.services import Services


async def list_pools(asked: Asked) -> Response:
    return answer(schemas.PoolList(pools=await shown_pools(asked.services)))


async def shown_pools(services: Services) -> list[schemas.Pool]:
    """The configured pools, each with the consumers that were alive at the last refresh of the catalog."""
    snapshot = services.catalog.snapshot
    now_ms = services.store.now_ms()
    decided = {
        made.pool: rendering.decision(made, now_ms=now_ms) for made in await services.call(services.store.decisions)
    }
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
        )
        for pool in services.settings.pools
    ]


async def scale(asked: Asked) -> Response:
    """Without a fresh decision no number: KEDA then keeps what is there, and would follow a stale one down to zero."""
    services, name = asked.services, asked.path_text("pool")
    if name not in (known := [pool.name for pool in services.settings.pools]):
        raise NotFound(f'there is no pool "{name[:64]}"', allowed=sorted(known))
    made = next((made for made in await services.call(services.store.decisions) if made.pool == name), None)
    if made is None:
        raise Unavailable(f"nothing was decided about the pool {name} yet: no scaler has looked at it")
    shown = rendering.decision(made, now_ms=services.store.now_ms())
    if shown.stale:
        raise Unavailable(
            f"the last decision about the pool {name} is {shown.age_seconds:.0f} s old: does a scaler run?"
        )
    return answer(shown)


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
)
