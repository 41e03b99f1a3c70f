"""Every metric of every process.

Metrics are Prometheus's. A process makes one registry with `new_registry()` and, on it, the class of its kind:
`ApiMetrics`, `DispatcherMetrics`, `ConsumerMetrics`. What the database knows (backlog, ages, consumers) is read at the
moment of a scrape by `StoreCollector`, and what consumers count reaches the API in their heartbeats and is shown again
by it, with the labels `consumer` and `pool`. `exposition.py` writes all of it.

Units stand in the names; `cost` is in the model's own unit. Labels are bounded: `model` is `model@version`, and no
label holds a tenant, an id of a job or anything else that users choose freely.
"""

from __future__ import annotations

import bisect
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from batchyard.errors import Unavailable
from batchyard.jobs import Lane, State, format_id
from batchyard.keda import DESIRED_REPLICAS
from batchyard.logs import configure_logging as configure_logging  # noqa: PLC0414  the two are set up together
from batchyard.logs import log_event as log_event  # noqa: PLC0414
from batchyard.pool_figures import first_hour_of_month, quantile

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.metrics_core import Metric

    from batchyard.exposition import Family
    from batchyard.store.base import BacklogRow, ConsumerInfo, ModelVersion, PoolDecision, PoolOverride, SpendRow

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Buckets of every duration."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)
"""Buckets of every number of jobs."""


def new_registry() -> CollectorRegistry:
    """An empty registry; the process-wide default one is not used."""
    from prometheus_client import CollectorRegistry, disable_created_metrics

    disable_created_metrics()  # type: ignore[no-untyped-call]
    return CollectorRegistry(auto_describe=False)


class _Maker:
    """Puts metrics of ours on a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, about: str, *labels: str) -> Counter:
        from prometheus_client import Counter

        return Counter(f"batchyard_{name}", about, labels, registry=self._registry)

    def gauge(self, name: str, about: str, *labels: str) -> Gauge:
        from prometheus_client import Gauge

        return Gauge(f"batchyard_{name}", about, labels, registry=self._registry)

    def histogram(self, name: str, about: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        from prometheus_client import Histogram

        return Histogram(f"batchyard_{name}", about, labels, buckets=buckets, registry=self._registry)


# --- what each kind of process counts -------------------------------------------------------------------------------


class ApiMetrics:
    """Of one API process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Maker(registry)
        self.requests = RequestTally()
        """HTTP requests by method, route and status, and their seconds."""
        registry.register(self.requests)
        self.submitted_jobs = make.counter(
            "jobs_submitted_total", "Jobs committed by this process, replays not counted", "model", "lane"
        )
        self.refused_submissions = make.counter(
            "submissions_refused_total", "Submissions refused, by error code", "code"
        )
        self.commits = make.counter("commits_total", "Transactions that committed submissions")
        self.commit_submissions = make.histogram(
            "commit_size_submissions", "Submissions in one transaction (group commit)", buckets=SIZES
        )
        self.commit_jobs = make.histogram("commit_size_jobs", "Jobs in one transaction (group commit)", buckets=SIZES)
        self.commit_seconds = make.histogram(
            "commit_seconds", "Duration of a transaction of submissions", buckets=SECONDS
        )
        self.waiters = make.gauge("waiters", "Long polls now waiting in this process")
        self.tickets = TicketMetrics(make)


class TicketMetrics:
    """Tickets that a process published. `reason`: window, allowance, straggler, requeued."""

    def __init__(self, make: _Maker) -> None:
        self.published = make.counter("tickets_published_total", "Tickets published, by reason", "reason")
        self.jobs = make.counter("ticketed_jobs_total", "Ids of jobs put into tickets, by reason", "reason")
        self.failures = make.counter("ticket_publish_failures_total", "Publishes that the broker did not take")


class DispatcherMetrics:
    """Of the dispatcher that an API process hosts; all but `leader` move on the leader alone."""

    def __init__(self, registry: CollectorRegistry, *, tickets: TicketMetrics | None = None) -> None:
        make = _Maker(registry)
        self.tickets = tickets or TicketMetrics(make)
        """Shared with `ApiMetrics` where both stand on one registry."""
        self.leader = make.gauge("leader", "1 where this process leads, else 0")
        self.outstanding_jobs = make.gauge(
            "ticketed_jobs_outstanding",
            "Jobs ticketed and, as far as the broker's depth tells, unclaimed",
            "model",
            "lane",
        )
        self.round_seconds = make.histogram("dispatcher_round_seconds", "Duration of one round", buckets=SECONDS)
        self.requeued_jobs = make.counter(
            "jobs_requeued_total",
            "Jobs made queued again: a retry fell due, their consumer died, or they moved to the firm lane",
            "reason",
        )
        self.expired_jobs = make.counter("jobs_expired_total", "Jobs not started by their deadline")
        self.retired_jobs = make.counter("jobs_retired_total", "Finished jobs deleted by retention")
        self.stored_bytes = make.gauge(
            "stored_bytes", "Inputs and results now kept, with the payloads that jobs refer to"
        )
        self.deleted_payloads = make.counter(
            "payload_deletions_total",
            "Bytes of payloads that no job needs deleted from the object store; failed: tried again later",
            "outcome",
        )
        self.folded_rows = make.counter("folded_rows_total", "Deltas folded and flushes numbered")


class WebhookMetrics:
    """Of the webhooks that one API process delivers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Maker(registry)
        self.attempts = make.counter(
            "webhook_attempts_total",
            "Attempts at deliveries, by what became of these: delivered, retried later, or dead",
            "outcome",
        )
        self.attempt_seconds = make.histogram("webhook_attempt_seconds", "Duration of an attempt", buckets=SECONDS)
        self.overdue_seconds = make.gauge(
            "webhook_overdue_seconds", "How long a delivery to an enabled endpoint has been due at most"
        )


class ConsumerMetrics:
    """Of one consumer. The API shows them with the labels `consumer` and `pool`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Maker(registry)
        self.claims = make.counter(
            "claims_total", "Claims; kind is ticket, or idle for one straight from the database", "kind"
        )
        self.claimed_jobs = make.counter("claimed_jobs_total", "Jobs claimed, by kind of claim", "kind")
        self.received_tickets = make.counter(
            "tickets_received_total", "Tickets received; rejected: not one of ours", "outcome"
        )
        self.finished_jobs = make.counter("jobs_finished_total", "Jobs that ended here, by outcome", "model", "outcome")
        self.retried_jobs = make.counter("jobs_retried_total", "Retryable failures that went back to wait", "model")
        self.cache_jobs = make.counter(
            "cache_jobs_total",
            "Jobs of models with a cache: hit (served), miss (computed), wait (for who computes the same; asks again)",
            "model",
            "outcome",
        )
        self.released_jobs = make.counter("jobs_released_total", "Jobs handed back unfinished, by reason", "reason")
        self.batches = make.counter(
            "batches_total",
            "Forward passes; closed says why nothing more joined: full, items, outlier, drained, suspect; or step",
            "model",
            "closed",
        )
        self.batch_jobs = make.histogram("batch_size_jobs", "Jobs in one forward pass", "model", buckets=SIZES)
        self.batch_cost = make.counter(
            "batch_cost_total", "Cost of what went through forward passes; kind is useful or padding", "model", "kind"
        )
        self.batch_splits = make.counter(
            "batch_splits_total", "Batches cut in two: out_of_memory, or to find the item that fails", "model", "reason"
        )
        self.queue_seconds = make.histogram("queue_seconds", "From submission to claim", "model", buckets=SECONDS)
        self.batch_wait_seconds = make.histogram(
            "batch_wait_seconds", "From claim to the start of the forward pass", "model", buckets=SECONDS
        )
        self.preprocess_seconds = make.histogram(
            "preprocess_seconds", "One call of preprocess", "model", buckets=SECONDS
        )
        self.forward_seconds = make.histogram("forward_seconds", "One forward pass", "model", buckets=SECONDS)
        self.postprocess_seconds = make.histogram(
            "postprocess_seconds", "Postprocess and encoding of one batch", "model", buckets=SECONDS
        )
        self.persist_seconds = make.histogram("persist_seconds", "One write of outcomes", buckets=SECONDS)
        self.persist_jobs = make.histogram("persist_size_jobs", "Outcomes in one write", buckets=SIZES)
        self.pipeline_jobs = make.gauge("pipeline_jobs", "Jobs held, by stage", "stage")
        self.device_busy_seconds = make.counter("device_busy_seconds_total", "Time in which the device computed")
        self.device_memory_bytes = make.gauge(
            "device_memory_bytes",
            "Memory of the device; kind is used, total, or of this consumer's models predicted or measured",
            "kind",
        )
        self.model_resident = make.gauge("model_resident", "1 where the model is loaded", "model")
        self.model_load_seconds = make.gauge("model_load_seconds", "Duration of the last load", "model")
        self.model_return_seconds = make.gauge(
            "model_return_seconds", "Duration of the last return from the machine's memory", "model"
        )
        self.model_load_failures = make.counter("model_load_failures_total", "Loads that failed", "model")


def observe_all(histogram: Histogram, values: Iterable[float]) -> None:
    """Count many values at once, for a fraction of what `observe` costs one by one."""
    ordered = sorted(values)
    start = 0
    for place, bound in enumerate(histogram._upper_bounds):
        end = bisect.bisect_right(ordered, bound, start)
        if end > start:
            histogram._buckets[place].inc(end - start)
        start = end
    histogram._sum.inc(sum(ordered))


def observe_counts(histogram: Histogram, counts: Mapping[float, int]) -> None:
    """Count values that each occur several times, given as value → how often."""
    for value, count in counts.items():
        place = bisect.bisect_left(histogram._upper_bounds, value)
        histogram._buckets[place].inc(count)
        histogram._sum.inc(value * count)


class RequestTally:
    """Requests by method, route and status, counted in a plain dictionary: a twentieth of what a `Counter` costs.

    Owned by the event loop's thread; a scrape reads it from there too.
    """

    def __init__(self) -> None:
        self._counts: Tally[tuple[str, str, int]] = Tally()
        self._seconds: dict[tuple[str, str, int], float] = {}

    def count(self, method: str, route: str, status: int, seconds: float = 0.0) -> None:
        """`route` is the template ("/v1/jobs/{id}"), never the path."""
        key = (method, route, status)
        self._counts[key] += 1
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily

        labels = ("method", "route", "status")
        requests = CounterMetricFamily("batchyard_http_requests", "Requests answered", labels=labels)
        seconds = SummaryMetricFamily("batchyard_http_request_seconds", "Time to the end of an answer", labels=labels)
        for (method, route, status), number in list(self._counts.items()):
            values = (method, route, str(status))
            requests.add_metric(values, number)
            seconds.add_metric(values, number, self._seconds[method, route, status])
        yield requests
        yield seconds


# --- what the database knows ----------------------------------------------------------------------------------------


class _Readable(Protocol):
    """The part of a JobStore that a scrape reads; each is O(queues) or O(consumers)."""

    def now_ms(self) -> int: ...
    def models(self) -> list[ModelVersion]: ...
    def backlog(self, *, queue_ids: Sequence[int] | None = None) -> list[BacklogRow]: ...
    def oldest_queued_ms(self) -> dict[int, int]: ...
    def consumers(self) -> list[ConsumerInfo]: ...
    def decisions(self) -> list[PoolDecision]: ...
    def overrides(self) -> dict[str, PoolOverride]: ...
    def spent(self, *, since_hour: int) -> list[SpendRow]: ...
    def learned(self, *names: str) -> dict[str, Any]: ...


class StoreCollector:
    """Shows the backlog, the ages, the consumers, what these counted and what was decided about their number, read anew
    at every scrape."""

    def __init__(self, store: _Readable) -> None:
        self._store = store

    def collect(self) -> Iterator[Family]:
        """Without a database only the word that it is away: the process's own metrics are wanted most just then."""
        from batchyard.exposition import Family

        is_up = Family("batchyard_database_up", "1 where the database answered this scrape")
        known: list[Family] = []
        try:
            known = list(self._read())
            is_up.add((), 1)
        except Unavailable:
            is_up.add((), 0)
        yield is_up
        yield from known

    def _read(self) -> Iterator[Family]:
        from batchyard.exposition import reemit

        models = self._store.models()
        consumers = self._store.consumers()
        yield from _backlog(models, self._store.backlog())
        yield from _queues(models, oldest_ms=self._store.oldest_queued_ms(), now_ms=self._store.now_ms())
        yield _population(consumers)
        now_ms = self._store.now_ms()
        yield from _decided(self._store.decisions(), now_ms=now_ms)
        yield _set_by_hand(self._store.overrides())
        yield from _spent(self._store.spent(since_hour=first_hour_of_month(now_ms)))
        yield from _preemptions(consumers)
        yield from _learned(self._store.learned("starts", "speeds"))
        yield from reemit(
            (
                {"consumer": format_id(consumer.id), "pool": consumer.pool},
                consumer.stats.get("samples", ()),
            )
            for consumer in consumers
            if consumer.state not in {"gone", "dead"}
        )


def _backlog(models: Iterable[ModelVersion], rows: Iterable[BacklogRow]) -> Iterator[Family]:
    from batchyard.exposition import Family

    labels = ("model", "lane", "state")
    jobs = Family("batchyard_backlog_jobs", "Jobs by queue and state; finished ones until retired", labels=labels)
    cost = Family("batchyard_backlog_cost", "Their estimated cost, in the model's unit", labels=labels)
    seconds = Family(
        "batchyard_backlog_seconds",
        "Seconds of one consumer's time that unfinished jobs need",
        labels=("model", "lane"),
    )
    sums: dict[tuple[int, State], list[int]] = {}
    for row in rows:
        entry = sums.setdefault((row.queue_id, row.state), [0, 0])
        entry[0] += row.jobs
        entry[1] += row.cost
    for version in models:
        for lane, queue_id in version.queue_ids.items():
            pending = 0
            for state in State:
                counted = sums.get((queue_id, state), (0, 0))
                pending += 0 if state.is_terminal else counted[1]
                jobs.add((version.name, lane.word, state.word), counted[0])
                cost.add((version.name, lane.word, state.word), counted[1])
            if version.seconds_per_unit is not None:
                seconds.add((version.name, lane.word), pending * version.seconds_per_unit)
    yield jobs
    yield cost
    yield seconds


def _queues(models: Iterable[ModelVersion], *, oldest_ms: Mapping[int, int], now_ms: int) -> Iterator[Family]:
    from batchyard.exposition import Family

    labels = ("model", "lane")
    ages = Family("batchyard_oldest_queued_seconds", "Age of the oldest queued job, 0 without one", labels=labels)
    paused = Family("batchyard_queue_paused", "1 where the queue is paused", labels=labels)
    for version in models:
        for lane, queue_id in version.queue_ids.items():
            created = oldest_ms.get(queue_id)
            ages.add((version.name, lane.word), 0.0 if created is None else max(0, now_ms - created) / 1000)
            paused.add((version.name, lane.word), float(Lane(lane) in version.paused))
    yield ages
    yield paused


def _population(consumers: Iterable[ConsumerInfo]) -> Family:
    from batchyard.exposition import Family

    family = Family(
        "batchyard_consumers",
        "Consumers by pool and state; gone and dead ones of the last hour",
        labels=("pool", "state"),
    )
    for key, number in Tally((consumer.pool, consumer.state) for consumer in consumers).items():
        family.add(key, number)
    return family


def _decided(decisions: Iterable[PoolDecision], *, now_ms: int) -> Iterator[Family]:
    """What was decided, and upon what; nothing of a pool whose decision is stale."""
    from batchyard.exposition import Family

    labels = ("pool",)
    desired = Family(DESIRED_REPLICAS, "Replicas decided for a pool; absent once stale", labels=labels)
    rules = Family("batchyard_decision_rule", "1 with the rule that decided about a pool", labels=("pool", "rule"))
    due = Family(
        "batchyard_binding_deadline_seconds",
        "Until the deadline that asked for the most replicas; absent without one",
        labels=labels,
    )
    late = Family("batchyard_unmeetable_jobs", "Due before any replica that is not there yet could help", labels=labels)
    work = Family("batchyard_pool_backlog_seconds", "Of one consumer's time, as far as speeds are known", labels=labels)
    for made in decisions:
        if made.is_stale(now_ms=now_ms):
            continue
        key = (made.pool,)
        desired.add(key, made.replicas)
        rules.add((made.pool, made.rule or "unknown"), 1)
        late.add(key, made.unmeetable_jobs)
        if made.binding_deadline_ms is not None:
            due.add(key, (made.binding_deadline_ms - now_ms) / 1000)
        if made.backlog_seconds is not None:
            work.add(key, made.backlog_seconds)
    yield from (desired, rules, due, late, work)


def _set_by_hand(overrides: Mapping[str, PoolOverride]) -> Family:
    from batchyard.exposition import Family

    family = Family("batchyard_pool_override", "1 where a pool is paused or pinned by hand", labels=("pool", "kind"))
    for name, override in overrides.items():
        family.add((name, "paused"), float(override.is_paused))
        family.add((name, "pinned"), float(override.pinned is not None))
    return family


def _spent(rows: Iterable[SpendRow]) -> Iterator[Family]:
    from batchyard.exposition import Family

    sums: dict[str, list[float]] = {}
    for row in rows:
        entry = sums.setdefault(row.pool, [0.0, 0.0])
        entry[0] += row.replica_seconds
        entry[1] += row.dollars
    seconds = Family("batchyard_pool_replica_seconds", "Of consumers, this month (UTC)", labels=("pool",))
    dollars = Family(
        "batchyard_pool_cost_dollars", "Of consumers, this month (UTC), at the pools' prices", labels=("pool",)
    )
    for pool, (took, cost) in sums.items():
        seconds.add((pool,), took)
        dollars.add((pool,), cost)
    yield seconds
    yield dollars


def _preemptions(consumers: Iterable[ConsumerInfo]) -> Iterator[Family]:
    from batchyard.exposition import Family

    family = Family(
        "batchyard_preempted_consumers",
        "Consumers that were preempted, of those there and those that left within the last hour",
        labels=("pool", "zone"),
    )
    lost = Tally((info.pool, info.zone) for info in consumers if info.preempted_at_ms is not None)
    for key, number in lost.items():
        family.add(key, number)
    yield family


def _learned(learned: Mapping[str, Any]) -> Iterator[Family]:
    from batchyard.exposition import Family

    starts = Family(
        "batchyard_cold_start_seconds",
        "From the decision to start a consumer until its first claim, of recent starts",
        labels=("pool", "quantile"),
    )
    for pool, seconds in learned.get("starts", {}).items():
        for share in (0.5, 0.9):
            starts.add((pool, f"{share:g}"), quantile(seconds, share))
    speeds = Family(
        "batchyard_seconds_per_unit",
        "Of cost, by class of hardware: median of what consumers measured last",
        labels=("model", "hardware"),
    )
    for key, told in learned.get("speeds", {}).items():
        model, _, hardware = key.partition(" ")
        speeds.add((model, hardware), quantile(list(told.values()), 0.5))
    yield starts
    yield speeds
