"""Consumers whose clocks are wrong: the database's clock decides about leases, deadlines and times."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.jobs import State
from tests.services.consumers.yard import Yard, until, yard
from tests.services.store.yard import check_ledgers

NOOP = """
[models.noop]
runtime = "batchyard_consumers.samples:NoOp"
[pools.local]
models = ["noop"]
drain_seconds = 2
"""
SHIFTED = Path(__file__).with_name("shifted")
HOUR_SECONDS = 3600


@pytest.mark.parametrize("shift_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
def test_an_hour_more_or_less_on_a_consumer_s_clock_changes_nothing(
    shift_seconds: int, tmp_path: Path, valkey_url: str, postgres_database: Callable[[], str]
) -> None:
    with yard(tmp_path, models=NOOP, broker_url=valkey_url, database=postgres_database()) as place:
        path = os.pathsep.join(filter(None, (str(SHIFTED), os.environ.get("PYTHONPATH"))))
        worker = place.start(env={"PYTHONPATH": path, "SHIFT_SECONDS": str(shift_seconds)})
        place.ready()
        now = place.store.now_ms()
        (info,) = place.store.consumers()
        assert abs(info.started_at_ms - now) < 60_000
        assert 0 < info.lease_until_ms - now < 60_000
        soon = place.submit("noop@1", list(range(50)), deadline_ms=now + 60_000, start_by_ms=now + 60_000)
        late = place.submit("noop@1", list(range(50)), deadline_ms=now - 1000, start_by_ms=now - 1000)
        place.finish(soon)
        place.store.expire_due(limit=1000)
        place.finish(late)
        assert place.states(soon) == {State.SUCCEEDED: 50}
        assert place.states(late) == {State.EXPIRED: 50}
        for view in place.view(soon):
            assert not view.is_late
            assert view.started_at_ms is not None
            assert now - 1000 <= view.started_at_ms <= place.store.now_ms()
        outlives_its_lease(place)
        assert worker.poll() is None
        check_ledgers(place.store)


def outlives_its_lease(place: Yard) -> None:
    """The lease is renewed in time, and reaping finds nobody, until after the first one would have ended."""
    (info,) = place.store.consumers()
    first_end = info.lease_until_ms

    def is_past() -> bool:
        assert place.store.reap(limit=10) == {}
        return place.store.now_ms() > first_end

    until(is_past, yard=place)
    assert [(each.id, each.state) for each in place.store.consumers()] == [(info.id, "ready")]
