"""A store with a model, a consumer and short words for what tests do with jobs."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from batchyard.jobs import Accepted, ClaimedJob, ErrorInfo, Lane, Outcome, PayloadReference, State, Submission
from batchyard.store.base import BulkConfig, BulkView, JobStore, JobView, Leftover, ModelConfig, PayloadInfo

TENANT = 1
LONG_MS = 600_000

NEVER, ALWAYS = 0, 1 << 50
"""Moments before which nothing, and everything, was uploaded."""

several_stores = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
"""For tests that open a database more than once."""


class Yard:
    """Everything a test needs to move jobs about; `store` for all else."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        (self.model,) = store.sync_models([ModelConfig(model="echo", version="1", runtime="tests:Echo")])
        self.queue = self.model.queue_ids[Lane.FIRM]
        self.tolerant = self.model.queue_ids[Lane.TOLERANT]
        self.owner = self.consumer()
        self._names = itertools.count()

    # --- making ---

    def consumer(self, *, lease_ms: int = LONG_MS) -> int:
        return self.store.register_consumer(
            pool="local",
            host="here",
            pid=1,
            device="cpu",
            capacity="on_demand",
            queue_ids=[self.queue],
            lease_ms=lease_ms,
        )

    def submission(self, count: int = 1, **values: Any) -> Submission:
        """Jobs whose input tells them apart and whose costs differ."""
        inputs = [b'{"n": %d}' % n for n in range(count)]
        shared: dict[str, Any] = {"tenant_id": TENANT, "queue_id": self.queue, "inputs": inputs}
        return Submission(**{**shared, "costs": [10 + n for n in range(count)], **values})

    def submit(self, count: int = 1, **values: Any) -> list[int]:
        (answer,) = self.store.submit([self.submission(count, **values)])
        assert isinstance(answer, Accepted), answer
        return list(answer.ids)

    def bulk(self, **values: Any) -> BulkView:
        shared: dict[str, Any] = {"tenant_id": TENANT, "queue_id": self.queue, "defaults": b"{}"}
        return self.store.create_bulk(BulkConfig(**{**shared, **values}))

    def tenant(self, **values: Any) -> int:
        return self.store.create_tenant(f"tenant-{next(self._names)}", **values).id

    # --- moving ---

    def claim(self, ids: Iterable[int], *, owner: int | None = None, queue: int | None = None) -> list[ClaimedJob]:
        tickets = [(self.queue if queue is None else queue, list(ids))]
        return self.store.claim(tickets, owner=self.owner if owner is None else owner)

    def finish(self, outcomes: Sequence[Outcome], *, owner: int | None = None) -> list[int]:
        return self.store.finish(outcomes, owner=self.owner if owner is None else owner)

    def run(self, ids: Iterable[int]) -> list[int]:
        """Claim jobs and let them succeed."""
        return self.finish([succeeded(job) for job in self.claim(ids)])

    def fail_for_now(self, ids: Iterable[int], *, retry_in_ms: int = 0) -> list[int]:
        return self.finish([waiting(job, retry_in_ms=retry_in_ms) for job in self.claim(ids)])

    # --- looking ---

    def view(self, job_id: int, *, tenant_id: int = TENANT) -> JobView:
        (view,) = self.store.get_jobs([job_id], tenant_id=tenant_id)
        return view

    def states(self, ids: Iterable[int]) -> list[State]:
        """In the order of the ids."""
        wanted = list(ids)
        found = {view.id: view.state for view in self.store.get_jobs(wanted, tenant_id=TENANT)}
        return [found[job_id] for job_id in wanted]

    def bulk_view(self, bulk: BulkView) -> BulkView:
        return self.store.get_bulk(bulk.id, tenant_id=TENANT)

    def number_flushes(self) -> None:
        """What the leader does all the time; needed before results of bulks can be read on Postgres."""
        while self.store.fold(limit=1000):
            pass

    def sweep(self) -> None:
        """Until no bulk has rows left to move."""
        for _ in range(100):
            before = snapshot(self.store)
            if self.store.sweep_bulks(limit=10_000) == 0 and snapshot(self.store) == before:
                return
        raise AssertionError("the sweep does not end")


def succeeded(job: ClaimedJob, *, body: bytes | None = None, cost: int = 7, device_us: int = 3) -> Outcome:
    """The result names its job and its input, so that crossed results show."""
    own = b'{"id": %d, "input": %b}' % (job.id, job.input)
    return Outcome(job, State.SUCCEEDED, body=own if body is None else body, cost=cost, device_us=device_us)


def failed(job: ClaimedJob) -> Outcome:
    return Outcome(job, State.FAILED, error=ErrorInfo(code="broken", message="it broke"))


def waiting(job: ClaimedJob, *, retry_in_ms: int = 0) -> Outcome:
    error = ErrorInfo(code="model_busy", message="not now", retryable=True)
    return Outcome(job, State.WAITING, error=error, retry_in_ms=retry_in_ms)


# --- payloads ---------------------------------------------------------------------------------------------------------

_FIRST_PAYLOAD = 1 << 40
_payload_numbers = itertools.count(_FIRST_PAYLOAD)


def upload(store: JobStore, *, size: int = 100, tenant_id: int = TENANT) -> int:
    number = next(_payload_numbers)
    location = f"{tenant_id}/{number:x}"
    store.expect_payload(number, location=location)
    info = PayloadInfo(
        id=number, tenant_id=tenant_id, content_type="image/png", size=size, digest=b"\xff", location=location
    )
    store.add_payload(info)
    return number


def naming(*payload_ids: Sequence[int]) -> list[PayloadReference]:
    """One argument per input: what it refers to."""
    return [
        PayloadReference(index=index, payload_id=number, pointer=f"/inputs/{index}")
        for index, numbers in enumerate(payload_ids)
        for number in numbers
    ]


def sweep(store: JobStore, *, deleted: Sequence[int] = (), before_ms: int = ALWAYS, limit: int = 100) -> list[Leftover]:
    return store.sweep_payloads(deleted=deleted, uploaded_before_ms=before_ms, limit=limit)


def uploaded() -> range:
    """All that `upload` has ever made."""
    return range(_FIRST_PAYLOAD, next(_payload_numbers))


# --- looking ----------------------------------------------------------------------------------------------------------


def eventually(happens: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Poll until something is so."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def snapshot(store: JobStore) -> dict[tuple[int, int, int, int, int], tuple[int, int]]:
    """The backlog as a mapping that compares."""
    return _keyed(store.backlog())


def check_ledgers(store: JobStore) -> None:
    """The backlog equals the count, before and after folding."""
    counted = _keyed(store.recount())
    assert snapshot(store) == counted
    while store.fold(limit=100_000):
        pass
    assert snapshot(store) == counted


def _keyed(rows: Iterable[Any]) -> dict[tuple[int, int, int, int, int], tuple[int, int]]:
    return {
        (row.queue_id, row.tenant_id, row.priority, int(row.state), row.bucket): (row.jobs, row.cost) for row in rows
    }
