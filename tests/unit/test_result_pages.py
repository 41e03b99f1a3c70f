"""Pages of a bulk's results: bounded in bytes by what was read before, and nothing left out."""

from itertools import pairwise

import pytest

from batchyard.jobs import Accepted, Lane, Outcome, State, Submission
from batchyard.result_pages import PAGE_BYTES, PAGE_GROWTH, ResultPages
from batchyard.store.base import BulkConfig, JobStore, ModelConfig
from batchyard.testing import memory_store

FLUSH_JOBS = 5


def finished_bulk(store: JobStore, *, sizes: list[int]) -> int:
    """A bulk whose results have these sizes in bytes, in this order, some to a flush."""
    (version,) = store.sync_models([ModelConfig(model="m", version="1", runtime="tests:Echo")])
    queue_id = version.queue_ids[Lane.FIRM]
    bulk = store.create_bulk(BulkConfig(tenant_id=1, queue_id=queue_id, defaults=b"{}"))
    count = len(sizes)
    submission = Submission(tenant_id=1, queue_id=queue_id, inputs=[b"1"] * count, costs=[1] * count, bulk_id=bulk.id)
    (accepted,) = store.submit([submission])
    assert isinstance(accepted, Accepted)
    owner = store.register_consumer(
        pool="p", host="h", pid=1, device="cpu", capacity="on_demand", queue_ids=[queue_id], lease_ms=60_000
    )
    jobs = store.claim([(queue_id, accepted.ids)], owner=owner)
    outcomes = [Outcome(job, State.SUCCEEDED, body=b"x" * size) for job, size in zip(jobs, sizes, strict=True)]
    for start in range(0, count, FLUSH_JOBS):
        store.finish(outcomes[start : start + FLUSH_JOBS], owner=owner)
    store.seal_bulk(tenant_id=1, bulk_id=bulk.id)
    return bulk.id


@pytest.mark.parametrize("size", [10, 50_000, 2 * PAGE_BYTES // FLUSH_JOBS])
def test_pages_are_bounded_in_bytes_and_complete(size: int) -> None:
    store = memory_store()
    pages = ResultPages(store, bulk_id=finished_bulk(store, sizes=[size] * 100), tenant_id=1, after=0)
    lengths = []
    indexes = []
    while (page := pages.next()) is not None and not page.finished:
        lengths.append(len(page.records))
        indexes += [row.index for row in page.records]
    assert sorted(indexes) == list(range(100))
    most = max(FLUSH_JOBS, PAGE_BYTES // size + FLUSH_JOBS)
    assert all(length <= most for length in lengths)
    growth = PAGE_GROWTH + 1  # a page ends with a whole flush
    assert all(after <= growth * before for before, after in pairwise(lengths))
    store.close()
