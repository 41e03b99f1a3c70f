"""What tests run in processes of their own: importable by name, which a test file is not."""

from multiprocessing.synchronize import Barrier
from pathlib import Path

from batchyard.jobs import Accepted, Submission
from batchyard.store import migrate
from batchyard.store.sqlite import SqliteStore
from tests.services.store.yard import TENANT, succeeded


def work(path: Path, queue: int, rounds: int, tenant: int) -> None:
    """Submit, claim whatever there is, finish; over and over."""
    store = SqliteStore(path)
    owner = store.register_consumer(
        pool="p", host="h", pid=tenant, device="cpu", capacity="on_demand", queue_ids=[queue], lease_ms=600_000
    )
    for _ in range(rounds):
        inputs = [b'{"n": %d}' % n for n in range(20)]
        (answer,) = store.submit([Submission(tenant_id=TENANT, queue_id=queue, inputs=inputs, costs=[1] * 20)])
        assert isinstance(answer, Accepted)
        lines = store.head(queue, after={}, jobs=64, urgent_before_ms=0)
        ids = [candidate.id for line in lines for candidate in line.candidates]
        jobs = store.claim([(queue, ids)], owner=owner)
        written = store.finish([succeeded(job) for job in jobs], owner=owner)
        assert len(written) == len(jobs)
    store.close()


_met: Barrier


def meet(barrier: Barrier) -> None:
    """Begin a process of a pool: only then can it be handed a barrier."""
    global _met
    _met = barrier


def look(urls: list[str]) -> list[str | None]:
    """The schema version of every database, each asked at the same moment as the other processes ask."""
    found = []
    for url in urls:
        _met.wait(10)
        found.append(migrate.current(url))
    return found
