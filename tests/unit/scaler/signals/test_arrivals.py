"""Seasons and slack of arrivals."""

import msgspec
import pytest

from batchyard.jobs import BUCKET_MS
from batchyard.pool_figures import HOUR_MS
from batchyard_scaler.signals.arrivals import Arrivals, usual_slack_seconds

MIDNIGHT_MS = 1_700_006_400_000 // (24 * HOUR_MS) * 24 * HOUR_MS


def days_of(costs: list[int], *, hour: int = 9) -> Arrivals:
    """Watched for some days on which jobs of so much cost came in one hour, one job for each ten."""
    arrivals = Arrivals()
    jobs = total = 0
    for day, cost in enumerate(costs):
        for now_hour in range(24):
            arrivals.see((jobs, total), {}, now_ms=MIDNIGHT_MS + (24 * day + now_hour) * HOUR_MS)
            if now_hour == hour:
                jobs, total = jobs + cost // 10, total + cost
    arrivals.see((jobs, total), {}, now_ms=MIDNIGHT_MS + 24 * len(costs) * HOUR_MS)
    return arrivals


def work(arrivals: Arrivals, *, at_ms: int, horizon: float = 360.0) -> float:
    return sum(
        due.work_seconds for due in arrivals.forecast(horizon_seconds=horizon, seconds_per_unit=1.0, now_ms=at_ms)
    )


def test_an_hour_that_comes_again_is_foretold() -> None:
    arrivals = days_of([3600, 3600, 3600])
    nine = MIDNIGHT_MS + (3 * 24 + 9) * HOUR_MS
    found = arrivals.forecast(horizon_seconds=360.0, seconds_per_unit=2.0, now_ms=nine)
    assert sum(due.work_seconds for due in found) == pytest.approx(720.0)
    assert sum(due.jobs for due in found) == 36
    assert work(arrivals, at_ms=nine - 2 * HOUR_MS) == 0
    assert 0 < work(arrivals, at_ms=nine - 100_000) < work(arrivals, at_ms=nine)


def test_the_upper_quantile_of_unlike_days_is_above_their_mean() -> None:
    nine = MIDNIGHT_MS + (5 * 24 + 9) * HOUR_MS
    assert work(days_of([3600, 7200, 3600, 7200, 3600]), at_ms=nine) > 540.0


def test_one_day_is_no_season() -> None:
    assert work(days_of([3600]), at_ms=MIDNIGHT_MS + 33 * HOUR_MS) == 0


def test_what_was_learned_is_compact_and_outlives_the_scaler() -> None:
    arrivals = days_of([3600, 3600])
    written = msgspec.json.encode(arrivals.known())
    assert len(written) < 1_000
    later = Arrivals(msgspec.json.decode(written))
    nine = MIDNIGHT_MS + (2 * 24 + 9) * HOUR_MS
    assert work(later, at_ms=nine) == pytest.approx(work(arrivals, at_ms=nine))


def test_an_hour_that_was_not_watched_from_its_beginning_teaches_nothing() -> None:
    arrivals = Arrivals()
    arrivals.see((0, 0), {}, now_ms=MIDNIGHT_MS + HOUR_MS // 2)
    assert not arrivals.see((50, 500), {}, now_ms=MIDNIGHT_MS + HOUR_MS)
    assert arrivals.see((60, 600), {}, now_ms=MIDNIGHT_MS + 2 * HOUR_MS)


def test_the_usual_slack_is_that_of_nearly_all_jobs() -> None:
    arrivals = Arrivals()
    for look in range(20):
        now_ms = MIDNIGHT_MS + look * BUCKET_MS
        minute = now_ms // BUCKET_MS
        arrivals.see((look, look), {minute + 61: [10, 10], minute + 601: [10, 10]}, now_ms=now_ms)
    slack = usual_slack_seconds([arrivals.slack])
    assert slack is not None
    assert 1_800 <= slack <= 3_600
    assert usual_slack_seconds([Arrivals().slack]) is None
    assert usual_slack_seconds([]) is None


def test_jobs_without_deadlines_have_no_usual_slack() -> None:
    arrivals = Arrivals()
    for look in range(20):
        arrivals.see((look, look), {0: [look * 10, 1]}, now_ms=MIDNIGHT_MS + look * BUCKET_MS)
    assert usual_slack_seconds([arrivals.slack]) is None
