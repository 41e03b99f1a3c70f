"""Two who want different things of the same jobs at the same moment."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from batchyard.errors import Gone, NotFound
from batchyard.jobs import ClaimedJob, State
from batchyard.store import migrate
from batchyard.store.base import JobStore
from batchyard.store.open import open_store
from tests.services.store.yard import TENANT, Yard, check_ledgers, succeeded

RACES = {"sqlite": 8_000, "postgres": 2_000}
"""Jobs cancelled and completed at the same moment: 10,000 in all."""
PIECE = 100


@pytest.fixture(params=RACES)
def open_one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], JobStore]]:
    """Opens a store over the same database, as another process would."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'batchyard.db'}"
    else:
        url = request.getfixturevalue("postgres_database")()
    migrate.upgrade(url)
    opened: list[JobStore] = []

    def make() -> JobStore:
        opened.append(open_store(url, state_dir=tmp_path))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def together(*deeds: Callable[[], object]) -> None:
    """Do all at once, each on a thread of its own."""
    meeting = threading.Barrier(len(deeds))

    def meet(deed: Callable[[], object]) -> object:
        meeting.wait(30)
        return deed()

    with ThreadPoolExecutor(len(deeds)) as threads:
        for done in [threads.submit(meet, deed) for deed in deeds]:
            done.result()


@pytest.mark.slow
def test_cancel_raced_with_complete_ten_thousand_times(
    open_one: Callable[[], JobStore], request: pytest.FixtureRequest
) -> None:
    yard, canceller = Yard(open_one()), open_one()
    rng = random.Random(7)
    answered: dict[int, State] = {}
    asked: set[int] = set()

    def complete(jobs: Sequence[ClaimedJob]) -> None:
        for start in range(0, len(jobs), 5):
            yard.finish([succeeded(job) for job in jobs[start : start + 5]])

    def cancel(jobs: Sequence[ClaimedJob]) -> None:
        for job in jobs:
            view = canceller.cancel(job.id, tenant_id=TENANT)
            answered[job.id] = view.state
            if view.cancel_requested:
                asked.add(job.id)

    for _ in range(RACES[request.node.callspec.params["open_one"]] // PIECE):
        jobs = yard.claim(yard.submit(PIECE))
        order = rng.sample(jobs, len(jobs))
        together(partial(complete, jobs), partial(cancel, order[::2]), partial(cancel, order[1::2]))
    ended = {view.id: view.state for view in yard.store.get_jobs(list(answered), tenant_id=TENANT)}
    counts = Counter(ended.values())
    assert set(counts) == {State.SUCCEEDED, State.CANCELLED}, counts
    assert all(ended[job_id] is State.CANCELLED for job_id in asked), "cancelled is what was answered"
    assert all(ended[job_id] is state for job_id, state in answered.items() if state.is_terminal)
    assert all(ended[job_id] is State.SUCCEEDED for job_id in ended.keys() - asked)
    assert min(counts.values()) > len(ended) / 50, "both must win now and then for this to be a race"
    assert sum(row.jobs for row in yard.store.usage()) == counts[State.SUCCEEDED]
    check_ledgers(yard.store)


def test_retention_races_late_writes_and_polls(open_one: Callable[[], JobStore]) -> None:
    yard, keeper, reader = Yard(open_one()), open_one(), open_one()
    jobs = yard.claim(yard.submit(300))
    outcomes = [succeeded(job) for job in jobs]
    ids = [job.id for job in jobs]
    assert yard.finish(outcomes) == ids

    def write_again() -> None:
        for _ in range(20):
            written = yard.finish(outcomes)
            assert set(written) <= set(ids)
            assert yard.store.release(jobs, owner=yard.owner) == []

    def retire() -> None:
        while keeper.retire(finished_before_ms=keeper.now_ms() + 1000, limit=20, tombstone_ms=1 << 40):
            pass

    def poll() -> None:
        for _ in range(40):
            for view in reader.get_jobs(ids, tenant_id=TENANT):
                assert view.state is State.SUCCEEDED
                assert view.result_body is not None
                assert view.result_body.startswith(b'{"id": %d,' % view.id)
            assert set(reader.finished_among(ids)) == set(ids), "who is gone has ended"

    together(write_again, retire, poll)
    retire()
    assert yard.store.get_jobs(ids, tenant_id=TENANT) == []
    assert sorted(yard.store.retired_among(ids, tenant_id=TENANT)) == ids
    assert yard.finish(outcomes) == []
    with pytest.raises((Gone, NotFound)):
        yard.store.cancel(ids[0], tenant_id=TENANT)
    assert sum(row.jobs for row in yard.store.usage()) == 300
    assert yard.store.stored_bytes() == 0, "nothing of them is left, and nothing was taken off twice"
    check_ledgers(yard.store)
