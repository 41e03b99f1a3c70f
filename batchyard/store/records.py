"""The records that a job store takes and gives, beside those of `batchyard.jobs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import msgspec

from batchyard.errors import Conflict, Unavailable
from batchyard.jobs import ErrorInfo, Lane, State
from batchyard.webhooks import Event


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant's own limits, see `LimitSettings`. None: as configured for all; 0: none."""

    queued_jobs: int | None = None
    stored_bytes: int | None = None
    requests_per_second: float | None = None
    jobs_per_second: float | None = None


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    weight: float = 1.0
    limits: TenantLimits = TenantLimits()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    prefix: str
    tenant: str
    tenant_id: int
    name: str
    scopes: tuple[str, ...]
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    replaced_by: str | None = None
    """The prefix of the key that took its place."""

    def fault(self, *, now_ms: int) -> str | None:
        """Why it is not valid now; None where it is."""
        if self.revoked_at_ms is not None:
            return "was revoked"
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return "has expired"
        return None


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One `model@version` with its two queues."""

    id: int
    model: str
    version: str
    weight: float
    active: bool
    default_lane: Lane
    runtime: str
    digest: str | None
    input_schema: dict[str, Any] | None
    """None until a consumer has loaded the version: any JSON is accepted."""
    cost_unit: str
    units_per_byte: float | None
    seconds_per_unit: float | None
    load_seconds: float | None
    load_error: str | None
    queue_ids: Mapping[Lane, int]
    paused: frozenset[Lane] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model version as the configuration wants it; see `JobStore.sync_models`."""

    model: str
    version: str
    runtime: str
    weight: float = 1.0
    default_lane: Lane = Lane.FIRM


class ConsumerInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    pool: str
    host: str
    pid: int
    device: str
    capacity: str
    state: str
    queue_ids: tuple[int, ...]
    stats: dict[str, Any]
    started_at_ms: int
    ready_at_ms: int | None
    lease_until_ms: int
    zone: str = ""
    """Of its cloud, such as `us-east-1a`; "" where it is not known."""
    preempted_at_ms: int | None = None
    """When it told that its machine is taken back. It drains from then on, and its state ends as gone or dead."""

    def has_loaded(self, model: str) -> bool | None:
        """Whether it has loaded this version ("embed@1"), as its last heartbeat told; None where it did not tell."""
        models = self.stats.get("models")
        told = models.get(model) if isinstance(models, dict) else None
        loaded = told.get("loaded") if isinstance(told, dict) else None
        return loaded if isinstance(loaded, bool) else None


STALE_SECONDS = 60.0
"""After which a scaler's decision says nothing about the present any more."""


class PoolDecision(msgspec.Struct, frozen=True, kw_only=True):
    """How many consumers a scaler wants in a pool, and why."""

    pool: str
    replicas: int
    """Wanted."""
    live: int
    """Starting or ready when it was decided."""
    reason: str
    backlog_jobs: int
    backlog_seconds: float | None
    """Of one consumer's time; None while a model's speed is unknown."""
    decided_at_ms: int
    """By the store's clock."""
    rule: str = ""
    """What decided, as one word."""
    binding_deadline_ms: int | None = None
    """The deadline that asked for the most replicas, to the minute."""
    unmeetable_jobs: int = 0
    """Whose deadline comes before any replica that is not there yet could help."""
    zones: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Of a spot pool: replicas wanted in each zone."""

    def age_seconds(self, *, now_ms: int) -> float:
        """By the store's clock too."""
        return max(0, now_ms - self.decided_at_ms) / 1000

    def is_stale(self, *, now_ms: int) -> bool:
        """Whether it may be shown only, and no pool be sized by it."""
        return self.age_seconds(now_ms=now_ms) > STALE_SECONDS


def followed(made: PoolDecision | None, *, pool: str, now_ms: int) -> PoolDecision:
    """The last decision about a pool, where KEDA may be told it; Unavailable where there is none or it is stale."""
    if made is None:
        raise Unavailable(f"nothing was decided about the pool {pool} yet: no scaler has looked at it")
    if made.is_stale(now_ms=now_ms):
        age = made.age_seconds(now_ms=now_ms)
        raise Unavailable(f"the last decision about the pool {pool} is {age:.0f} s old: does a scaler run?")
    return made


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What says that one holder leads; see `JobStore.lead`."""

    name: str
    holder: int


class LeaseLost(Conflict):
    """Another holder has the lease by now: nothing was written."""


class PoolOverride(msgspec.Struct, frozen=True, kw_only=True):
    """What people fixed by hand."""

    pool: str
    pinned: int | None = None
    is_paused: bool = False


class SpendRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool's consumers took of one hour (whole hours since the epoch)."""

    pool: str
    hour: int
    replica_seconds: float
    dollars: float
    """At the prices of the time; 0 without one."""


class Renewal(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer hears when it renews its lease."""

    alive: bool
    """False once it was reaped: drop everything held and start anew under a fresh owner id."""
    cancelled: Sequence[int] = ()
    """Jobs held by this consumer whose cancellation was asked for."""


class BacklogRow(msgspec.Struct, frozen=True, kw_only=True):
    queue_id: int
    tenant_id: int
    priority: int
    state: State
    bucket: int
    jobs: int
    cost: int


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A queued job as ordering sees it."""

    id: int
    cost: int
    start_by_ms: int | None
    ticketed_at_ms: int | None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The front of one tenant's queued jobs of one priority within a queue, by arrival."""

    tenant_id: int
    weight: float
    priority: int
    candidates: Sequence[Candidate]
    urgent: Sequence[Candidate] = ()
    """Those whose latest safe start is near, soonest first; they may stand in `candidates` too."""
    has_more: bool = False
    """Further jobs may stand behind the candidates."""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a reader sees it. `result` is set only where asked for and present."""

    id: int
    tenant_id: int
    queue_id: int
    state: State
    priority: int
    attempt: int
    failures: int
    crashes: int
    preemptions: int
    max_failures: int
    cancel_requested: bool
    cost_estimate: int
    created_at_ms: int
    bulk_id: int | None
    bulk_index: int | None
    deadline_ms: int | None
    not_before_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    custom_id: str | None
    labels: tuple[str, ...]
    redrive_of: int | None
    is_held: bool = False
    """Queued, and kept back because its bulk is paused."""
    redriven_as: int | None = None
    """Of a dead job: the one that took its place."""
    partial_body: bytes | None = None
    """JSON of what a running job has come to so far, where its model tells."""
    is_following: bool = False
    """Waiting, because another job goes first that computes the same."""
    cost: int | None = None
    device_us: int | None = None
    result_format: int | None = None
    result_body: bytes | None = None
    computed_by: int | None = None
    """The job whose result this is, where it was served from the cache; 0 for one of another tenant."""
    error: ErrorInfo | None = None

    @property
    def is_late(self) -> bool:
        return (
            self.deadline_ms is not None and self.finished_at_ms is not None and self.finished_at_ms > self.deadline_ms
        )


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    tenant_id: int
    queue_ids: Sequence[int] | None = None
    state: State | None = None
    label: str | None = None
    error_code: str | None = None
    """Of the failure, or of a waiting job the last one."""
    finished_from_ms: int | None = None
    finished_before_ms: int | None = None
    before_id: int | None = None
    """Newest first: only ids below this one (the cursor)."""
    limit: int = 100


class JobInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a job was given, as submitted, beside what its view shows."""

    id: int
    body: bytes
    params: bytes | None
    affinity_key: str | None
    max_cost: int | None
    digest: bytes | None
    webhook: str | None = None


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page may hold fewer jobs than asked for and still have a `next_before_id`: a page's work is bounded."""

    jobs: Sequence[JobView]
    next_before_id: int | None


class BulkConfig(msgspec.Struct, frozen=True, kw_only=True):
    tenant_id: int
    queue_id: int
    defaults: bytes
    chunk_size: int = 10_000
    created_by: str | None = None
    idempotency_key: str | None = None
    idempotency_digest: bytes | None = None
    webhook: str | None = None
    """The URL that hears of its end."""


class BulkView(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    tenant_id: int
    queue_id: int
    defaults: bytes
    chunk_size: int
    jobs: int
    """Accepted so far: the index of the next job."""
    sealed_at_ms: int | None
    paused: bool
    cancel_requested: bool
    created_at_ms: int
    counts: Mapping[State, int]
    cost: int
    """Exact cost of what has succeeded."""

    @property
    def is_finished(self) -> bool:
        """Sealed, and every job terminal."""
        return (
            self.sealed_at_ms is not None
            and sum(n for state, n in self.counts.items() if state.is_terminal) == self.jobs
        )


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    tenant_id: int
    queue_id: int
    hour: int
    jobs: int
    cost: int
    device_us: int
    input_bytes: int
    result_bytes: int
    retired_bytes: int


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes in the object store that no payload names."""

    id: int
    location: str


class PayloadInfo(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    tenant_id: int
    content_type: str
    size: int
    digest: bytes
    location: str


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint of a tenant."""

    id: int
    tenant_id: int
    url: str | None
    """None: the tenant's one for the URLs that its jobs and bulks name."""
    events: tuple[str, ...]
    """What it hears of all jobs and bulks of its tenant."""
    description: str
    created_at_ms: int
    disabled_at_ms: int | None
    disabled_because: str | None
    secrets: tuple[str, ...]
    """Those that are valid now, the newest first."""


class DeliveryState(IntEnum):
    """Where a delivery stands. The number is what the database stores."""

    PENDING = 0
    DELIVERED = 1
    DEAD = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message to one endpoint: that a job or a bulk has ended."""

    id: int
    tenant_id: int
    webhook_id: int
    subject_id: int
    """The job or bulk."""
    event: Event
    url: str
    state: DeliveryState
    attempts: int
    """Begun so far. Fences what is written of an attempt."""
    created_at_ms: int
    """When the job or bulk ended."""
    due_at_ms: int
    """Of the next attempt."""
    ended_at_ms: int | None
    status: int | None
    """HTTP's, of the last answer."""
    error: str | None
    """Why the last attempt failed."""


class DueDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery to be attempted now, by whoever took it."""

    delivery: Delivery
    secrets: tuple[str, ...]


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which deliveries of a tenant are meant; all that is given must hold."""

    tenant_id: int
    id: int | None = None
    webhook_id: int | None = None
    subject_id: int | None = None
    state: DeliveryState | None = None
    from_ms: int | None = None
    """By the end of their jobs and bulks."""
    before_ms: int | None = None
    before_id: int | None = None
    """Newest first: only ids below this one (the cursor)."""
