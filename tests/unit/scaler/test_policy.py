"""How many consumers a pool should have."""

import pytest

from batchyard_scaler.policy.simple import PoolState, QueueBacklog, decide


def pool(
    *, live: int = 0, minimum: int = 0, maximum: int = 3, idle: float = 0.0, never: tuple[str, ...] = ()
) -> PoolState:
    return PoolState(
        minimum=minimum, maximum=maximum, idle_seconds=60, live=live, idle_for_seconds=idle, never_loaded=never
    )


def backlog(jobs: int, seconds: float | None = None) -> QueueBacklog:
    return QueueBacklog(name="m@1 firm", jobs=jobs, seconds=seconds)


@pytest.mark.parametrize(
    ("state", "queues", "replicas"),
    [
        (pool(), [], 0),
        (pool(minimum=2), [], 2),
        (pool(never=("m@1",)), [], 1),
        (pool(minimum=1, never=("m@1",)), [], 1),
        (pool(), [backlog(1)], 1),
        (pool(), [backlog(1_000_000)], 1),
        (pool(), [backlog(10, 5.0)], 1),
        (pool(), [backlog(10, 45.0)], 2),
        (pool(), [backlog(10, 4000.0)], 3),
        (pool(), [backlog(10, 20.0), backlog(10, 25.0), backlog(0, 0.0)], 2),
        (pool(minimum=2), [backlog(1, 0.1)], 2),
    ],
)
def test_work_decides_between_min_and_max(state: PoolState, queues: list[QueueBacklog], replicas: int) -> None:
    assert decide(state, queues).replicas == replicas


def test_consumers_stay_until_they_have_been_idle_long_enough() -> None:
    early = decide(pool(live=2, idle=59), [])
    assert (early.replicas, early.reason) == (2, "no work; the surplus leaves in 1 s")

    late = decide(pool(live=2, idle=60), [])
    assert (late.replicas, late.reason) == (0, "no work, for 60 s")


def test_the_reason_says_what_was_seen() -> None:
    assert decide(pool(), [backlog(1200, 90.0)]).reason == "1,200 jobs, 90 s of one consumer's time, max is 3"
    assert decide(pool(), [backlog(12)]).reason == "12 jobs, speed not known yet"
    assert decide(pool(never=("m@1",)), []).reason == "m@1 to be loaded for the first time"
