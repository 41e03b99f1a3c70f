"""What a submitter knows without asking the database: models, queues, their load and speed; refreshed every second."""

from __future__ import annotations

import difflib
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from batchyard.errors import BatchyardError, QueueFull, Unavailable, UnknownModel
from batchyard.inputs import Validator
from batchyard.jobs import Lane, State
from batchyard.limits import Limiter
from batchyard.settings import NO_LIMITS, LimitSettings, PoolSettings
from batchyard.store.base import BacklogRow, ConsumerInfo, JobStore, ModelVersion

REFRESH_SECONDS = 1.0
RATE_SECONDS = 15.0
"""Time constant of the smoothed rate at which a queue drains."""
STORED_REFRESH_SECONDS = 5.0
"""How old the sums of kept bytes may be, where any tenant's are limited."""
RETRY_SECONDS = (1.0, 300.0)
"""Least and most that a full queue asks its submitters to wait."""
UNKNOWN_RETRY_SECONDS = 30.0
"""Where neither a rate has been seen nor the model's speed been learned."""


class QueueLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One queue at the last refresh."""

    queue_id: int
    version: ModelVersion
    lane: Lane
    queued: int = 0
    waiting: int = 0
    running: int = 0
    cost: int = 0
    """Estimated, of all three."""
    jobs_per_second: float | None = None
    """How fast it drained while its consumers had work; None before that was seen."""
    ready: int = 0
    """Live consumers that serve it."""
    starting: int = 0
    """Consumers on their way to serving it."""
    has_pool: bool = True
    """Some configured pool serves it, whether or not a consumer of it lives."""

    @property
    def is_paused(self) -> bool:
        return self.lane in self.version.paused

    @property
    def is_served(self) -> bool:
        """Whether a consumer is there, or on its way."""
        return self.ready > 0 or self.starting > 0

    @property
    def backlog_seconds(self) -> float | None:
        """Of one consumer's time; None until the model's speed is known."""
        speed = self.version.seconds_per_unit
        return None if speed is None else self.cost * speed

    def seconds_for(self, jobs: int) -> float | None:
        """How long this many jobs from the front take: by the rate seen, else by the model's learned speed on the
        consumers there are, or on one to come; None where neither is known. While none is ready, loading is added."""
        loading = 0.0 if self.ready else self.version.load_seconds or 0.0
        if self.jobs_per_second:
            return jobs / self.jobs_per_second + loading
        backlog, total = self.backlog_seconds, self.queued + self.waiting + self.running
        if backlog is None or not total:
            return None
        return backlog / max(1, self.ready or self.starting) * jobs / total + loading


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of it at one moment; replaced, never changed."""

    versions: Sequence[ModelVersion]
    by_name: Mapping[str, ModelVersion]
    """`model@version` → version; active ones only."""
    by_alias: Mapping[str, tuple[ModelVersion, ...]]
    queues: Mapping[int, QueueLoad]
    consumers: Sequence[ConsumerInfo]
    taken_at: float


class Catalog:
    """Shared by the threads of a process. `refresh` replaces the snapshot; everything else reads it."""

    def __init__(
        self,
        store: JobStore,
        *,
        max_queued: int,
        pools: Sequence[PoolSettings] = (),
        limits: LimitSettings = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._max_queued = max_queued
        self._pools = pools
        self._clock = clock
        self.limiter = Limiter(limits, clock=clock)
        self._stored_due = 0.0
        self._refreshing = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._rates: dict[int, _Rate] = {}
        self._validators: dict[int, tuple[object, Validator | None]] = {}
        self._added: dict[int, int] = {}
        """Jobs admitted per queue since the snapshot; a race loses a few counts and the next refresh mends it."""

    def run(self, stop: threading.Event) -> None:
        """Refresh until told to stop; a database that is away leaves the last snapshot standing."""
        while not stop.wait(REFRESH_SECONDS):
            self.refresh_quietly()

    def refresh_quietly(self) -> None:
        try:
            self.refresh()
        except BatchyardError:
            return

    def refresh(self, *, older_than_seconds: float = 0.0) -> None:
        """Read models, backlog and consumers anew, unless the snapshot is younger than given; Unavailable."""
        with self._refreshing:
            now = self._clock()
            if self._snapshot is not None and now - self._snapshot.taken_at < older_than_seconds:
                return
            versions = self._store.models()
            backlog = self._store.backlog()
            finished = self._store.finished_jobs()
            self._learn_limits(backlog, now=now)
            consumers = [info for info in self._store.consumers() if info.state in {"starting", "ready", "draining"}]
            queues = self._loads(versions, backlog=backlog, finished=finished, consumers=consumers, now=now)
            self._added = {}
            self._snapshot = _snapshot(versions, queues=queues, consumers=consumers, now=now)

    def _learn_limits(self, backlog: Sequence[BacklogRow], *, now: float) -> None:
        queued: dict[int, int] = {}
        for row in backlog:
            if row.state in {State.QUEUED, State.WAITING}:
                queued[row.tenant_id] = queued.get(row.tenant_id, 0) + row.jobs
        self.limiter.learn(self._store.tenants(), queued=queued)
        if self.limiter.needs_stored and now >= self._stored_due:
            self.limiter.learn_stored(self._store.stored_bytes_by_tenant())
            self._stored_due = now + STORED_REFRESH_SECONDS

    @property
    def snapshot(self) -> Snapshot:
        """The last one; the first use takes it."""
        if self._snapshot is None:
            self.refresh()
            assert self._snapshot is not None
        return self._snapshot

    def resolve(self, model: str) -> ModelVersion:
        """The version that a job for this name gets: as named, or for a bare name drawn by weight. UnknownModel."""
        snapshot = self.snapshot
        version = snapshot.by_name.get(model)
        if version is not None:
            return version
        choices = snapshot.by_alias.get(model)
        if choices is None:
            raise _unknown(model, snapshot)
        if len(choices) == 1:
            return choices[0]
        return random.choices(choices, [choice.weight for choice in choices])[0]

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a model, or the one named `model@version`, in the configuration or not; UnknownModel."""
        found = [version for version in self.snapshot.versions if name in {version.model, version.name}]
        if not found:
            raise _unknown(name, self.snapshot)
        return found

    def queue_ids(self, name: str) -> list[int]:
        """The queues of all these versions; UnknownModel."""
        return [queue_id for version in self.versions(name) for queue_id in version.queue_ids.values()]

    def load(self, queue_id: int) -> QueueLoad:
        """One queue; Unavailable where it is newer than the snapshot and the database cannot be asked."""
        load = self.snapshot.queues.get(queue_id)
        if load is None:
            self.refresh()
            load = self.snapshot.queues.get(queue_id)
        if load is None:
            raise Unavailable(f"queue {queue_id} is not known here yet", retry_after_seconds=1)
        return load

    def validator(self, version: ModelVersion) -> Validator | None:
        """The compiled schema of a version; None where any JSON goes, or its schema is none."""
        schema = version.input_schema
        if not schema:
            return None
        known = self._validators.get(version.id)
        if known is None or known[0] != schema:
            known = self._validators[version.id] = (schema, _compile(schema))
        return known[1]

    def admit(self, queue_id: int, jobs: int, *, tenant_id: int, size_bytes: int) -> None:
        """Count jobs in, about to be submitted; QueueFull where the queue would go above its limit, OverQuota,
        RateLimited or TooLarge where the tenant would go above one of its own."""
        added = self._added
        load = self.load(queue_id)
        queued = load.queued + added.get(queue_id, 0)
        if queued + jobs > self._max_queued:
            raise self._full(queue_id, queued=queued, jobs=jobs)
        self.limiter.take_jobs(tenant_id, jobs=jobs, size_bytes=size_bytes, seconds_for=load.seconds_for)
        added[queue_id] = added.get(queue_id, 0) + jobs

    def _full(self, queue_id: int, *, queued: int, jobs: int) -> QueueFull:
        load = self.load(queue_id)
        excess = queued + jobs - self._max_queued
        seconds = load.seconds_for(excess)
        least, most = RETRY_SECONDS
        wait = math.ceil(min(max(UNKNOWN_RETRY_SECONDS if seconds is None else seconds, least), most))
        return QueueFull(
            f"the queue of {load.version.name} ({load.lane.word}) holds {queued} jobs; its limit is {self._max_queued}",
            limit=self._max_queued,
            retry_after_seconds=wait,
        )

    def _loads(
        self,
        versions: Sequence[ModelVersion],
        *,
        backlog: Sequence[BacklogRow],
        finished: Mapping[int, int],
        consumers: Sequence[ConsumerInfo],
        now: float,
    ) -> dict[int, QueueLoad]:
        jobs: dict[tuple[int, State], int] = {}
        cost: dict[int, int] = {}
        for row in backlog:
            key = (row.queue_id, row.state)
            jobs[key] = jobs.get(key, 0) + row.jobs
            if not row.state.is_terminal:
                cost[row.queue_id] = cost.get(row.queue_id, 0) + row.cost
        loads: dict[int, QueueLoad] = {}
        for version in versions:
            for lane, queue_id in version.queue_ids.items():
                count = {state: jobs.get((queue_id, state), 0) for state in State}
                serving = [_standing(info, version) for info in consumers if queue_id in info.queue_ids]
                ready = serving.count("ready")
                has_work = count[State.RUNNING] > 0 or (count[State.QUEUED] > 0 and lane not in version.paused)
                rate = self._rates.setdefault(queue_id, _Rate())
                loads[queue_id] = QueueLoad(
                    queue_id=queue_id,
                    version=version,
                    lane=lane,
                    queued=count[State.QUEUED],
                    waiting=count[State.WAITING],
                    running=count[State.RUNNING],
                    cost=cost.get(queue_id, 0),
                    jobs_per_second=rate.see(finished.get(queue_id, 0), now=now, is_busy=ready > 0 and has_work),
                    ready=ready,
                    starting=serving.count("starting"),
                    has_pool=self._has_pool(version, lane=lane, serving=serving),
                )
        return loads

    def _has_pool(self, version: ModelVersion, *, lane: Lane, serving: Sequence[str]) -> bool:
        return bool(serving) or any(
            (lane == Lane.TOLERANT or pool.capacity == "on_demand") and {version.model, version.name} & set(pool.models)
            for pool in self._pools
        )


def _standing(info: ConsumerInfo, version: ModelVersion) -> str:
    """A consumer's state with regard to one of its models, which it loads one after the other and may fail to load."""
    if info.state != "ready" or info.has_loaded(version.name) is not False:
        return info.state
    return "failed" if version.load_error is not None else "starting"


class _Rate:
    """Jobs finished per second while there was work, smoothed. Owned by the thread that refreshes."""

    def __init__(self) -> None:
        self._finished: int | None = None
        self._at = 0.0
        self._value: float | None = None

    def see(self, finished: int, *, now: float, is_busy: bool) -> float | None:
        """Take the next of a count that never falls. Time without work is passed over, and so is time without anybody
        to do it, which says nothing about the speed of those to come."""
        if self._finished is None:
            self._finished, self._at = finished, now
            return self._value
        elapsed = now - self._at
        if elapsed < 0.2:
            return self._value
        done = finished - self._finished
        self._finished, self._at = finished, now
        if done or is_busy:
            rate = done / elapsed
            share = 1.0 - math.exp(-elapsed / RATE_SECONDS)
            if self._value is None:
                self._value = rate or None
            else:
                self._value += share * (rate - self._value)
        return self._value


def _snapshot(
    versions: Sequence[ModelVersion], *, queues: Mapping[int, QueueLoad], consumers: Sequence[ConsumerInfo], now: float
) -> Snapshot:
    active = [version for version in versions if version.active]
    by_alias: dict[str, tuple[ModelVersion, ...]] = {}
    for version in active:
        if version.weight > 0:
            by_alias[version.model] = (*by_alias.get(version.model, ()), version)
    return Snapshot(
        versions=versions,
        by_name={version.name: version for version in active},
        by_alias=by_alias,
        queues=queues,
        consumers=consumers,
        taken_at=now,
    )


def _unknown(model: str, snapshot: Snapshot) -> UnknownModel:
    """Names what exists, and the nearest to what was asked for."""
    known = sorted({*snapshot.by_alias, *snapshot.by_name})
    if not known:
        return UnknownModel(
            f'there is no model "{model}": none is configured; add [models.NAME] to batchyard.toml', allowed=[]
        )
    near = difflib.get_close_matches(model, known, n=1, cutoff=0.5)
    shown = ", ".join(sorted(snapshot.by_alias) or known)
    details: dict[str, Any] = {"allowed": known}
    if near:
        details["nearest"] = near[0]
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return UnknownModel(f'there is no model "{model[:200]}"; there are: {shown}{hint}', **details)


def _compile(schema: Mapping[str, Any]) -> Validator | None:
    """A schema that does not compile checks nothing here: the consumer then fails bad items by itself."""
    try:
        return Validator(schema)
    except ValueError:
        return None
