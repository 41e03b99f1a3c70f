"""Whose batch is next, for the device's first thread and for those that help it."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from batchyard.jobs import ClaimedJob, Lane
from batchyard.model import Model
from batchyard_consumers.channels import Closed
from batchyard_consumers.held import Batch, Holding
from batchyard_consumers.pools import Pools
from batchyard_consumers.served import Served
from tests.unit.consumers.jobs import claimed, ids_of, served

OWNER = 7


class Concurrent(Model):
    concurrent_forward = True


def two_versions() -> tuple[Served, Served]:
    shy = served(Model(), name="shy", version_id=1, queue_ids={Lane.FIRM: 1, Lane.TOLERANT: 2}, budget=1)
    concurrent = served(Concurrent(), name="open", version_id=2, queue_ids={Lane.FIRM: 3, Lane.TOLERANT: 4}, budget=1)
    return shy, concurrent


def made(versions: Sequence[Served]) -> tuple[Pools, Holding]:
    holding = Holding()
    return Pools(versions, holding=holding, owner=OWNER, now_ms=lambda: 0), holding


def add(pools: Pools, holding: Holding, version: Served, *numbers: int) -> None:
    jobs = [claimed(number, queue_id=version.queue_ids[Lane.FIRM]) for number in numbers]
    holding.claimed(version, jobs)
    assert pools.add(version, jobs, [None] * len(jobs), [1] * len(jobs), owner=OWNER)


def failed(version: Served, job: ClaimedJob) -> Batch:
    assert version.model is not None
    return Batch(
        served=version,
        model=version.model,
        owner=OWNER,
        jobs=[job],
        items=[None],
        costs=[1],
        cost=1,
        padded_cost=1,
        reason="full",
    )


def helper_s_next(pools: Pools) -> list[Any]:
    """What a thread that helps gets; it must not take ten seconds."""
    got: list[Any] = []

    def take() -> None:
        try:
            got.append(pools.next(helps=True))
        except Closed:
            got.append(Closed)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    return got


def test_who_helps_takes_only_what_may_run_beside_others() -> None:
    shy, concurrent = two_versions()
    pools, holding = made([shy, concurrent])
    add(pools, holding, shy, 1, 2)
    add(pools, holding, concurrent, 3, 4)
    assert [ids_of(batch.jobs) for batch in helper_s_next(pools) + helper_s_next(pools)] == [[3], [4]]
    assert [ids_of(pools.next().jobs) for _ in range(2)] == [[1], [2]]


def test_parts_of_a_failed_batch_go_first_to_whoever_may_run_them() -> None:
    shy, concurrent = two_versions()
    pools, holding = made([shy, concurrent])
    add(pools, holding, concurrent, 3)
    pools.put_back([failed(shy, claimed(1)), failed(concurrent, claimed(2))])
    assert [ids_of(batch.jobs) for batch in helper_s_next(pools)] == [[3]]
    assert ids_of(pools.next().jobs) == [1]
    assert [ids_of(batch.jobs) for batch in helper_s_next(pools)] == [[2]]


def test_a_part_that_waits_for_the_first_thread_holds_up_no_other() -> None:
    # More of this version is on its way, so the helper waits for it, and gives up waiting.
    shy, concurrent = two_versions()
    concurrent.speed.configured_budget = 100
    pools, holding = made([shy, concurrent])
    holding.claimed(concurrent, [claimed(9)])
    add(pools, holding, concurrent, 3)
    pools.put_back([failed(shy, claimed(1))])
    assert [ids_of(batch.jobs) for batch in helper_s_next(pools)] == [[3]]
    assert ids_of(pools.next().jobs) == [1]


def test_who_helps_is_woken_by_what_is_left() -> None:
    _, concurrent = versions = two_versions()
    pools, holding = made(versions)
    taken: list[int] = []
    both = threading.Barrier(3)

    def help_out() -> None:
        taken.extend(ids_of(pools.next(helps=True).jobs))
        both.wait(10)

    threads = [threading.Thread(target=help_out, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    add(pools, holding, concurrent, 1, 2)
    both.wait(10)
    assert sorted(taken) == [1, 2]


@pytest.mark.parametrize("helps", [False, True])
def test_closing_wakes_everybody(helps: bool) -> None:
    pools, _ = made(two_versions())
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(Closed):
            pools.next(helps=helps)
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    pools.close()
    assert ended.wait(10)


def test_cancelled_jobs_leave_the_parts_of_failed_batches_too() -> None:
    shy, _ = versions = two_versions()
    pools, holding = made(versions)
    batch = failed(shy, claimed(1))
    batch.jobs, batch.items, batch.costs = [claimed(n) for n in range(1, 5)], [None] * 4, [1] * 4
    batch.cost, batch.seconds = 4, 0.4
    pools.put_back(batch.halves())
    add(pools, holding, shy, 5, 6)
    dropped = pools.drop(frozenset([2, 3, 4, 6]))
    assert sorted((one.job.id, one.device_us) for one in dropped) == [(2, 100_000), (3, 100_000), (4, 100_000), (6, 0)]
    assert [ids_of(pools.next().jobs) for _ in range(2)] == [[1], [5]]
    assert pools.jobs == 0


def test_versions_have_the_device_by_their_shares() -> None:
    shy, concurrent = two_versions()
    shy.settings = replace(shy.settings, share=3.0)
    pools, holding = made([shy, concurrent])
    add(pools, holding, shy, *range(1, 41))
    add(pools, holding, concurrent, *range(41, 81))
    served = []
    for _ in range(20):
        batch = pools.next()
        served.append(batch.served.name)
        pools.charge(batch.served, seconds=0.1)
    assert served.count(shy.name) in {14, 15, 16}
