"""Records for unit tests, and a store that answers what a catalog asks."""

from collections.abc import Sequence
from typing import Any, cast

from batchyard.catalog import Catalog
from batchyard.jobs import Lane, State
from batchyard.settings import NO_LIMITS, LimitSettings, PoolSettings, QueueSettings, ServerSettings
from batchyard.store.base import BacklogRow, ConsumerInfo, JobStore, JobView, ModelVersion, Tenant
from batchyard.submission import Caller, Submitter

NOW_MS = 1_763_694_000_000
CALLER = Caller(tenant_id=1)


def model_version(name: str = "echo@1", *, id: int = 1, **changes: Any) -> ModelVersion:  # noqa: A002
    model, _, version = name.partition("@")
    values: dict[str, Any] = {
        "id": id,
        "model": model,
        "version": version,
        "weight": 1.0,
        "active": True,
        "default_lane": Lane.FIRM,
        "runtime": "tests:Echo",
        "digest": None,
        "input_schema": None,
        "cost_unit": "bytes",
        "units_per_byte": None,
        "seconds_per_unit": None,
        "load_seconds": None,
        "load_error": None,
        "queue_ids": {Lane.FIRM: 2 * id - 1, Lane.TOLERANT: 2 * id},
    }
    return ModelVersion(**(values | changes))


def job_view(id: int = 1024, **changes: Any) -> JobView:  # noqa: A002
    values: dict[str, Any] = {
        "id": id,
        "tenant_id": 1,
        "queue_id": 1,
        "state": State.QUEUED,
        "priority": 5,
        "attempt": 0,
        "failures": 0,
        "crashes": 0,
        "preemptions": 0,
        "max_failures": 3,
        "cancel_requested": False,
        "cost_estimate": 10,
        "created_at_ms": NOW_MS,
        "bulk_id": None,
        "bulk_index": None,
        "deadline_ms": None,
        "not_before_ms": None,
        "started_at_ms": None,
        "finished_at_ms": None,
        "custom_id": None,
        "labels": (),
        "redrive_of": None,
    }
    return JobView(**(values | changes))


def consumer(*, id: int = 7, state: str = "ready", queue_ids: Sequence[int] = (1, 2)) -> ConsumerInfo:  # noqa: A002
    return ConsumerInfo(
        id=id,
        pool="local",
        host="here",
        pid=1,
        device="cpu",
        capacity="on_demand",
        state=state,
        queue_ids=tuple(queue_ids),
        stats={},
        started_at_ms=NOW_MS,
        ready_at_ms=None,
        lease_until_ms=NOW_MS,
    )


def backlog_row(queue_id: int, state: State, jobs: int, *, cost: int | None = None) -> BacklogRow:
    return BacklogRow(
        queue_id=queue_id,
        tenant_id=1,
        priority=5,
        state=state,
        bucket=0,
        jobs=jobs,
        cost=jobs if cost is None else cost,
    )


class CatalogStore:
    """The readers that a catalog calls."""

    def __init__(self, *versions: ModelVersion) -> None:
        self.versions = list(versions) or [model_version()]
        self.rows: list[BacklogRow] = []
        self.finished: dict[int, int] = {}
        self.fleet: list[ConsumerInfo] = []
        self.shared_by = [Tenant(id=1, name="default")]
        self.stored: dict[int, int] = {}
        self.reads = 0

    def models(self) -> list[ModelVersion]:
        self.reads += 1
        return self.versions

    def backlog(self, *, queue_ids: Sequence[int] | None = None) -> list[BacklogRow]:
        return self.rows

    def finished_jobs(self) -> dict[int, int]:
        return self.finished

    def consumers(self) -> list[ConsumerInfo]:
        return self.fleet

    def tenants(self) -> list[Tenant]:
        return self.shared_by

    def stored_bytes_by_tenant(self) -> dict[int, int]:
        return self.stored


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def catalog(
    store: CatalogStore,
    *,
    max_queued: int = 1_000_000,
    pools: Sequence[PoolSettings] = (),
    limits: LimitSettings = NO_LIMITS,
    clock: Clock | None = None,
) -> Catalog:
    return Catalog(cast("JobStore", store), max_queued=max_queued, pools=pools, limits=limits, clock=clock or Clock())


def submitter(*versions: ModelVersion, server: ServerSettings | None = None, max_queued: int = 1_000_000) -> Submitter:
    return Submitter(
        catalog(CatalogStore(*versions), max_queued=max_queued),
        server=server or ServerSettings(),
        queues=QueueSettings(),
    )
