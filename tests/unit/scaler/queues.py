"""Versions and backlogs as a store tells of them."""

from batchyard.jobs import Lane, State
from batchyard.store.base import BacklogRow, ConsumerInfo, ModelVersion


def version(
    *, digest: str | None = "d", speed: float | None = None, paused: frozenset[Lane] = frozenset()
) -> ModelVersion:
    return ModelVersion(
        id=1,
        model="m",
        version="1",
        weight=1.0,
        active=True,
        default_lane=Lane.FIRM,
        runtime="a:B",
        digest=digest,
        input_schema=None,
        cost_unit="bytes",
        units_per_byte=None,
        seconds_per_unit=speed,
        load_seconds=None,
        load_error=None,
        queue_ids={Lane.FIRM: 1, Lane.TOLERANT: 2},
        paused=paused,
    )


def row(
    jobs: int,
    *,
    queue_id: int = 1,
    state: State = State.QUEUED,
    priority: int = 5,
    cost: int = 0,
    bucket: int = 0,
) -> BacklogRow:
    return BacklogRow(
        queue_id=queue_id, tenant_id=1, priority=priority, state=state, bucket=bucket, jobs=jobs, cost=cost
    )


def consumer(
    number: int = 1,
    *,
    pool: str = "p",
    state: str = "ready",
    started_ms: int = 0,
    ready_ms: int | None = None,
    lease_ms: int = 0,
    zone: str = "",
    preempted_ms: int | None = None,
    device: str = "cpu",
    **stats: object,
) -> ConsumerInfo:
    return ConsumerInfo(
        id=number,
        pool=pool,
        host="h",
        pid=number,
        device=device,
        capacity="spot",
        state=state,
        queue_ids=(),
        stats=stats,
        started_at_ms=started_ms,
        ready_at_ms=ready_ms,
        lease_until_ms=lease_ms,
        zone=zone,
        preempted_at_ms=preempted_ms,
    )
