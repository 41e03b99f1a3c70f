"""Metrics are cheap to count, bounded in their labels, and travel with heartbeats."""

import json
import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchyard import exposition, telemetry
from batchyard.jobs import Lane, State
from batchyard.keda import DESIRED_REPLICAS
from batchyard.store.base import BacklogRow, ConsumerInfo, ModelVersion, PoolDecision, PoolOverride, SpendRow


def shown(registry: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = exposition.render(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_has_the_prefix_and_a_unit_or_a_plain_count() -> None:
    registry = telemetry.new_registry()
    api = telemetry.ApiMetrics(registry)
    telemetry.DispatcherMetrics(registry, tickets=api.tickets)
    telemetry.ConsumerMetrics(registry)
    names = [family.name for family in registry.collect()]
    assert len(names) == len(set(names))
    assert all(name.startswith("batchyard_") for name in names)
    exposition.render(registry)


@pytest.mark.parametrize("values", [[], [0.001], [0.0, 0.0011, 5.0, 1e9], [0.3] * 1000])
def test_observing_many_equals_observing_each(values: list[float]) -> None:
    one, many = telemetry.new_registry(), telemetry.new_registry()
    single, bulk = telemetry.ConsumerMetrics(one).persist_seconds, telemetry.ConsumerMetrics(many).persist_seconds
    for value in values:
        single.observe(value)
    telemetry.observe_all(bulk, values)
    first, second = shown(one), shown(many)
    assert first.keys() == second.keys()
    assert all(math.isclose(first[key], second[key]) for key in first)


def test_requests_are_tallied_by_route_and_status() -> None:
    registry = telemetry.new_registry()
    api = telemetry.ApiMetrics(registry)
    for seconds in (0.5, 0.25):
        api.requests.count("GET", "/v1/jobs/{id}", 200, seconds)
    labels = (("method", "GET"), ("route", "/v1/jobs/{id}"), ("status", "200"))
    samples = shown(registry)
    assert samples["batchyard_http_requests_total", labels] == 2
    assert samples["batchyard_http_request_seconds_sum", labels] == 0.75


def test_a_snapshot_is_shown_again_under_the_consumers_labels() -> None:
    registry = telemetry.new_registry()
    consumer = telemetry.ConsumerMetrics(registry)
    consumer.claims.labels("idle").inc(3)
    consumer.forward_seconds.labels("m@1").observe(0.02)
    travelled = json.loads(json.dumps(exposition.snapshot(registry)))
    api = telemetry.new_registry()
    api.register(Fleet(travelled))
    samples = shown(api)
    for name in ("a", "b"):
        claims = (("consumer", name), ("kind", "idle"), ("pool", "p"))
        assert samples["batchyard_claims_total", claims] == 3
        labels = (("consumer", name), ("le", "+Inf"), ("model", "m@1"), ("pool", "p"))
        assert samples["batchyard_forward_seconds_bucket", labels] == 1


class Fleet:
    """Two consumers that reported the same."""

    def __init__(self, families: Any) -> None:
        self._families = families

    def collect(self) -> Any:
        return exposition.reemit([({"consumer": name, "pool": "p"}, self._families) for name in "ab"])


class Store:
    """What a scrape reads."""

    def now_ms(self) -> int:
        return 10_000

    def models(self) -> list[ModelVersion]:
        return [
            ModelVersion(
                id=1,
                model="m",
                version="1",
                weight=1,
                active=True,
                default_lane=Lane.FIRM,
                runtime="x:Y",
                digest=None,
                input_schema=None,
                cost_unit="tokens",
                units_per_byte=None,
                seconds_per_unit=0.5,
                load_seconds=None,
                load_error=None,
                queue_ids={Lane.FIRM: 1, Lane.TOLERANT: 2},
                paused=frozenset({Lane.TOLERANT}),
            )
        ]

    def backlog(self, *, queue_ids: object = None) -> list[BacklogRow]:
        return [
            BacklogRow(queue_id=1, tenant_id=t, priority=5, state=state, bucket=0, jobs=2, cost=10)
            for t in (1, 2)
            for state in (State.QUEUED, State.SUCCEEDED)
        ]

    def oldest_queued_ms(self) -> dict[int, int]:
        return {1: 4_000}

    def consumers(self) -> list[ConsumerInfo]:
        return [
            ConsumerInfo(
                id=number,
                pool="p",
                host="h",
                pid=1,
                device="cpu",
                capacity="spot",
                state=state,
                queue_ids=(1,),
                stats={"samples": [["batchyard_x", "gauge", "x", [["batchyard_x", "", number]]]]},
                started_at_ms=0,
                ready_at_ms=0,
                lease_until_ms=0,
                zone="a" if state == "dead" else "",
                preempted_at_ms=5 if state == "dead" else None,
            )
            for number, state in ((1, "ready"), (2, "dead"))
        ]

    def decisions(self) -> list[PoolDecision]:
        return [
            PoolDecision(
                pool=pool,
                replicas=4,
                live=1,
                rule="deadline",
                reason="x",
                backlog_jobs=0,
                backlog_seconds=9.0,
                binding_deadline_ms=40_000,
                unmeetable_jobs=2,
                decided_at_ms=at,
            )
            for pool, at in (("fresh", 10_000), ("stale", 10_000 - 61_000))
        ]

    def overrides(self) -> dict[str, PoolOverride]:
        return {"p": PoolOverride(pool="p", pinned=2)}

    def spent(self, *, since_hour: int) -> list[SpendRow]:
        return [SpendRow(pool="p", hour=hour, replica_seconds=60.0, dollars=0.25) for hour in (1, 2)]

    def learned(self, *names: str) -> dict[str, Any]:
        return {"starts": {"p": [5.0, 7.0, 30.0]}, "speeds": {"m@1 cpu": {"a": 0.5, "b": 0.7}}}


def test_what_pools_cost_and_what_was_learned_of_them_is_shown() -> None:
    registry = telemetry.new_registry()
    registry.register(telemetry.StoreCollector(Store()))
    samples = shown(registry)
    pool = ("pool", "p")
    assert samples["batchyard_pool_override", (("kind", "pinned"), pool)] == 1
    assert samples["batchyard_pool_override", (("kind", "paused"), pool)] == 0
    assert samples["batchyard_pool_replica_seconds", (pool,)] == 120
    assert samples["batchyard_pool_cost_dollars", (pool,)] == 0.5
    assert samples["batchyard_preempted_consumers", (pool, ("zone", "a"))] == 1
    assert samples["batchyard_cold_start_seconds", (pool, ("quantile", "0.5"))] == 7
    assert samples["batchyard_cold_start_seconds", (pool, ("quantile", "0.9"))] == 30
    assert samples["batchyard_seconds_per_unit", (("hardware", "cpu"), ("model", "m@1"))] == 0.5


def test_why_a_pool_has_its_size_is_shown_while_it_is_fresh() -> None:
    registry = telemetry.new_registry()
    registry.register(telemetry.StoreCollector(Store()))
    samples = shown(registry)
    fresh = ("pool", "fresh")
    assert samples["batchyard_decision_rule", (fresh, ("rule", "deadline"))] == 1
    assert samples["batchyard_binding_deadline_seconds", (fresh,)] == 30
    assert samples["batchyard_unmeetable_jobs", (fresh,)] == 2
    assert samples["batchyard_pool_backlog_seconds", (fresh,)] == 9
    assert not [labels for _, labels in samples if ("pool", "stale") in labels]


def test_the_store_is_read_at_a_scrape() -> None:
    registry = telemetry.new_registry()
    registry.register(telemetry.StoreCollector(Store()))
    samples = shown(registry)
    firm, tolerant = (("lane", "firm"), ("model", "m@1")), (("lane", "tolerant"), ("model", "m@1"))
    assert samples["batchyard_backlog_jobs", (*firm, ("state", "queued"))] == 4
    assert samples["batchyard_backlog_jobs", (*tolerant, ("state", "queued"))] == 0
    assert samples["batchyard_backlog_cost", (*firm, ("state", "queued"))] == 20
    assert samples["batchyard_backlog_seconds", firm] == 10
    assert samples["batchyard_oldest_queued_seconds", firm] == 6
    assert samples["batchyard_oldest_queued_seconds", tolerant] == 0
    assert samples["batchyard_queue_paused", tolerant] == 1
    assert samples["batchyard_consumers", (("pool", "p"), ("state", "dead"))] == 1
    alive = (("consumer", "0000000000000001"), ("pool", "p"))
    assert [value for (name, labels), value in samples.items() if name == "batchyard_x"] == [1]
    assert samples["batchyard_x", alive] == 1


def test_stale_decisions_are_withdrawn_from_a_scrape() -> None:
    registry = telemetry.new_registry()
    registry.register(telemetry.StoreCollector(Store()))
    desired = {labels: value for (name, labels), value in shown(registry).items() if name == DESIRED_REPLICAS}
    assert desired == {(("pool", "fresh"),): 4}
