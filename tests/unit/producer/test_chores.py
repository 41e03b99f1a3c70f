"""Which tolerant jobs the leader moves to the firm lane, and when."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from batchyard.jobs import Accepted, Lane, Submission
from batchyard.settings import PoolSettings, QueueSettings, Settings
from batchyard.store.base import JobStore, ModelConfig
from batchyard.testing import memory_store
from batchyard_producer.chores import Chores
from batchyard_producer.dispatcher import Timing

NOW_MS = 1_700_000_000_000
LONG_MS = 3_600_000

ON_DEMAND = PoolSettings(name="steady", models=("m",))
SPOT = PoolSettings(name="cheap", models=("m",), capacity="spot")


class Yard:
    """One model, a store whose clock stands still, and the leader's chores."""

    def __init__(self, folder: Path) -> None:
        self.store: JobStore = memory_store(clock=lambda: NOW_MS)
        [model] = self.store.sync_models([ModelConfig(model="m", version="1", runtime="a:B")])
        self.firm, self.tolerant = model.queue_ids[Lane.FIRM], model.queue_ids[Lane.TOLERANT]
        self.folder = folder
        self.requeued: list[tuple[dict[int, list[int]], str]] = []

    def chores(self, *pools: PoolSettings) -> None:
        """One round with these pools."""
        queues = QueueSettings(max_preemptions=2, firm_slack_seconds=60)
        settings = Settings(state_dir=self.folder, pools=pools, queues=queues)

        def note(queued: Mapping[int, list[int]], reason: str) -> None:
            self.requeued.append((dict(queued), reason))

        Chores(self.store, settings, timing=Timing(), requeued=note, metrics=None).run(is_active=False)

    def submit(self, *, start_in_ms: int | None = None) -> int:
        wanted = Submission(
            tenant_id=1,
            queue_id=self.tolerant,
            inputs=[b"1"],
            costs=[1],
            deadline_ms=None if start_in_ms is None else NOW_MS + LONG_MS,
            start_by_ms=None if start_in_ms is None else NOW_MS + start_in_ms,
        )
        [made] = self.store.submit([wanted])
        assert isinstance(made, Accepted)
        return made.ids[0]

    def consumer(self, capacity: str) -> int:
        queue_ids = [self.tolerant] if capacity == "spot" else [self.firm, self.tolerant]
        owner = self.store.register_consumer(
            pool="p", host="h", pid=1, device="cpu", capacity=capacity, queue_ids=queue_ids, lease_ms=LONG_MS
        )
        self.store.renew(owner, lease_ms=LONG_MS, state="ready", stats={})
        return owner

    def preempt(self, job_id: int) -> None:
        owner = self.consumer("spot")
        held = self.store.claim([(self.tolerant, [job_id])], owner=owner)
        assert self.store.release(held, owner=owner, preempted=True) == [job_id]


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.store.close()


def test_a_job_preempted_twice_moves_and_is_ticketed_where_it_is_now(yard: Yard) -> None:
    once, twice = yard.submit(), yard.submit()
    for job_id in (once, twice, twice):
        yard.preempt(job_id)
    yard.chores(ON_DEMAND, SPOT)
    assert yard.requeued == [({yard.firm: [twice]}, "requeued")]


def test_nothing_moves_where_only_spot_serves_the_model(yard: Yard) -> None:
    job_id = yard.submit(start_in_ms=0)
    for _ in range(5):
        yard.preempt(job_id)
    yard.chores(SPOT, PoolSettings(name="other", models=("n",)))
    assert yard.requeued == []


def test_slack_that_runs_out_moves_a_job_only_to_consumers_that_are_ready(yard: Yard) -> None:
    soon, _ = yard.submit(start_in_ms=59_000), yard.submit(start_in_ms=61_000)
    yard.consumer("spot")
    yard.chores(ON_DEMAND)
    assert yard.requeued == []
    yard.consumer("on_demand")
    yard.chores(ON_DEMAND)
    assert yard.requeued == [({yard.firm: [soon]}, "requeued")]
