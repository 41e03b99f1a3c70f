"""What the command shows: tables, figures, and which log lines people hear of."""

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from batchyard import schemas
from batchyard.cli.dashboard import cached_by, cost, dashboard
from batchyard.cli.figures import rate, seconds
from batchyard.cli.models import state_of
from batchyard.cli.supervisor import describe, headline
from batchyard.settings import PoolSettings


def consumer(stats: dict[str, Any], *, number: int = 1) -> schemas.Consumer:
    return schemas.Consumer(
        id=f"{number:016}",
        pool="local",
        host="here",
        pid=123,
        device="cpu",
        capacity="on_demand",
        state="ready",
        started_at="2026-01-01T00:00:00Z",
        stats=stats,
    )


def pool(consumers: list[schemas.Consumer], **changes: Any) -> schemas.Pool:
    return schemas.Pool(
        name="local",
        capacity="on_demand",
        device="auto",
        models=["minilm"],
        min=0,
        max=2,
        price_per_hour=0,
        consumers=consumers,
        **changes,
    )


def shown(pools: list[schemas.Pool], queues: list[schemas.QueueStatus]) -> str:
    """What `status` prints."""
    status = schemas.Status(
        time="2026-01-01T00:00:00Z",
        version="0.1.0",
        database="d",
        broker="up",
        role="leader",
        queues=queues,
        pools=pools,
    )
    out = io.StringIO()
    Console(file=out, width=160).print(dashboard(status))
    return out.getvalue()


def test_the_dashboard_shows_queues_pools_consumers_and_batches() -> None:
    stats = {
        "jobs_per_second": 271.0,
        "device_busy": 0.97,
        "held": {"pool": 30, "device": 2},
        "models": {
            "minilm@1": {
                "batches": 10,
                "batch_size": 31.5,
                "budget": 1024,
                "seconds_per_job": 0.0035,
                "fill": 0.875,
                "padding": 0.02,
                "closed": {"drained": 2, "full": 8},
            }
        },
    }
    decision = schemas.PoolScale(
        pool="local", replicas=2, live=1, reason="9 jobs", decided_at="2026-01-01T00:00:00Z", age_seconds=3.0
    )
    local = pool([consumer(stats)], decision=decision)
    stale = msgspec.structs.replace(decision, age_seconds=3725.0, stale=True, rule="hold")
    left = msgspec.structs.replace(local, name="left", decision=stale)
    queue = schemas.QueueStatus(
        model="minilm@1", lane="tolerant", queued=1234567, waiting=1, running=2, consumers=1, jobs_per_second=270.6
    )
    broken = schemas.QueueStatus(model="bad@1", lane="firm", queued=3, waiting=0, running=0, load_error="no such file")

    text = shown([local, left], [queue, broken])

    for words in (
        "1,234,567",
        "271/s",
        "97 %",
        "bad@1 cannot be loaded: no such file",
        "31.5",
        "1,024",
        "3.50 ms",
        "88 %",
        "full 80 %, drained 20 %",
    ):
        assert words in text
    assert "  2: 9 jobs (3.0 s ago)" in text
    assert "  stale: 2: hold: 9 jobs (1 h 2 min ago)" in text


def test_what_caches_serve_is_summed_over_consumers() -> None:
    told = [
        {"m@1": {"cache": {"hit": 30, "miss": 1, "wait": 9}}, "n@1": {"cache": {}}},
        {"m@1": {"cache": {"miss": 9}}},
    ]
    consumers = [consumer({"models": models}, number=number) for number, models in enumerate(told)]
    assert cached_by(consumers) == {"m@1": (30, 10)}
    assert "m@1: 75 % of 40 jobs were served from the cache" in shown([pool(consumers)], [])


def test_what_a_pool_cost_is_shown_in_money_or_else_in_hours() -> None:
    assert [cost(12.345, 3.0), cost(0.0123, 3.0), cost(0.0, 3.0), cost(None, 1234.5)] == [
        "$12.35",
        "$0.0123",
        "$0.00",
        "1,234.50 h",
    ]


def shown_with_old_load_error(*, loaded: bool, consumers: int = 1, starting: int = 0) -> str:
    """The dashboard of one model whose last load failed somewhere."""
    consumer = schemas.Consumer(
        id="0" * 16,
        pool="local",
        host="here",
        pid=1,
        device="cpu",
        capacity="on_demand",
        state="ready",
        started_at="2026-01-01T00:00:00Z",
        stats={"models": {"m@1": {"loaded": loaded}}},
    )
    pool = schemas.Pool(
        name="local",
        capacity="on_demand",
        device="auto",
        models=["m"],
        min=0,
        max=1,
        price_per_hour=0,
        consumers=[consumer] if consumers else [],
    )
    queue = schemas.QueueStatus(
        model="m@1",
        lane="firm",
        queued=3,
        waiting=0,
        running=0,
        consumers=consumers,
        starting=starting,
        load_error="out of memory",
    )
    status = schemas.Status(
        time="2026-01-01T00:00:00Z",
        version="0.1.0",
        database="sqlite",
        broker="up",
        role="leader",
        queues=[queue],
        pools=[pool],
    )
    out = io.StringIO()
    Console(file=out, width=160).print(dashboard(status))
    return out.getvalue()


def test_a_served_model_is_shown_as_served_whatever_failed_before() -> None:
    shown = shown_with_old_load_error(loaded=True)

    assert "1 consumer" in shown
    assert "m@1 is served, though a consumer could not load it: out of memory" in shown
    assert "cannot" not in shown


@pytest.mark.parametrize(("consumers", "starting"), [(0, 0), (0, 1), (1, 0)])
def test_a_model_that_nobody_has_loaded_is_shown_as_broken(consumers: int, starting: int) -> None:
    shown = shown_with_old_load_error(loaded=False, consumers=consumers, starting=starting)

    assert "cannot load\n" in shown.replace(" \n", "\n")
    assert "m@1 cannot be loaded: out of memory" in shown
    assert "1 consumer" not in shown


@pytest.mark.parametrize(
    ("warm", "load_error", "active", "shown"),
    [
        (True, "out of memory", True, "warm"),
        (False, "[/red] out of memory", True, "cannot load: [/red] out of memory"),
        (False, None, True, "cold"),
        (False, None, False, "no longer configured"),
    ],
)
def test_the_state_of_a_version(*, warm: bool, load_error: str | None, active: bool, shown: str) -> None:
    version = schemas.ModelVersion(
        name="m@1",
        version="1",
        weight=1,
        active=active,
        runtime="a:B",
        lane="firm",
        queues=[],
        warm=warm,
        load_error=load_error,
    )

    assert state_of(version).plain == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.25, "0.2 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (200_000, "2 d 7 h")],
)
def test_durations(value: float | None, shown: str) -> None:
    assert seconds(value) == shown


def test_rates() -> None:
    assert [rate(None), rate(1.25), rate(12345.6)] == ["–", "1.2/s", "12,346/s"]


def test_people_hear_of_what_the_scaler_does_and_of_errors() -> None:
    scaled = {"event": "pool_scaled", "level": "info", "pool": "local", "before": 0, "replicas": 1, "reason": "12 jobs"}
    error = {"time": "t", "level": "error", "event": "batch_lost", "logger": "l", "model": "m@1", "traceback": "…"}

    assert headline(msgspec.json.encode(scaled)) == "pool local: 0 → 1 consumers (12 jobs)"
    assert headline(msgspec.json.encode(error)) == "error: batch_lost model=m@1"
    assert headline(b'{"event": "leadership", "level": "info"}') is None
    assert headline(b"INFO: plain text") is None
    assert headline(b"[1]") is None


def test_a_pool_in_one_line() -> None:
    pool = PoolSettings(name="cheap", models=("a", "b@2"), capacity="spot", device="cuda", max=4)

    assert describe(pool) == "cheap: a, b@2 on 0 to 4 consumers (device cuda, spot)"
