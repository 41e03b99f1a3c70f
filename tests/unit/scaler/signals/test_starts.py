"""Cold starts, from being asked for until the first claim."""

import msgspec
import pytest

from batchyard_scaler.signals.starts import PRIOR_SECONDS, Starts, ready_in_seconds
from tests.unit.scaler.queues import consumer, version


def test_a_start_takes_from_being_asked_for_until_the_first_claim() -> None:
    starts = Starts()
    starts.see([], now_ms=0)
    assert starts.pending("p", unregistered=2, now_ms=1_000) == [1_000, 1_000]
    assert starts.pending("p", unregistered=3, now_ms=5_000) == [1_000, 1_000, 5_000]

    first, second = consumer(1, state="starting", started_ms=9_000), consumer(2, state="starting", started_ms=9_500)
    starts.see([first, second], now_ms=9_500)
    assert starts.asked_at_ms(first) == 1_000
    assert starts.pending("p", unregistered=1, now_ms=10_000) == [5_000]

    ready = msgspec.structs.replace(first, state="ready", ready_at_ms=21_000)
    starts.see([ready, second], now_ms=22_000)
    assert starts.known() == {}
    claimed = msgspec.structs.replace(ready, stats={"first_claim_ms": 23_000})
    for _ in range(2):
        starts.see([claimed, second], now_ms=24_000)
    assert starts.known() == {"p": [22.0]}
    assert starts.percentile("p", 0.9) == 22.0


@pytest.mark.parametrize(("claimed_ms", "took"), [(None, 4.0), (3_900, 3.9), (14_000, 14.0), (14_001, 4.0)])
def test_a_start_without_anything_to_claim_ends_when_it_is_ready(claimed_ms: int | None, took: float) -> None:
    starts = Starts()
    starts.see([], now_ms=0)
    one = consumer(1, ready_ms=4_000, first_claim_ms=claimed_ms)
    starts.see([one], now_ms=14_001)
    assert starts.known() == {"p": [took]}


def test_what_is_no_longer_asked_for_is_forgotten_the_newest_first() -> None:
    starts = Starts()
    starts.pending("p", unregistered=1, now_ms=1_000)
    starts.pending("p", unregistered=2, now_ms=2_000)
    assert starts.pending("p", unregistered=1, now_ms=3_000) == [1_000]
    assert starts.pending("p", unregistered=-1, now_ms=3_000) == []


def test_starts_before_the_first_look_were_counted_by_another() -> None:
    starts = Starts(known={"p": [7.0, 9.0]})
    old = consumer(1, started_ms=1_000, ready_ms=90_000)
    starts.see([old], now_ms=100_001)
    starts.see([old, consumer(2, started_ms=1_000, ready_ms=4_000)], now_ms=100_001)
    assert starts.known() == {"p": [7.0, 9.0, 3.0]}
    assert (starts.percentile("p", 0.5), starts.percentile("p", 0.9)) == (7.0, 9.0)


def test_without_history_there_is_a_stated_prior() -> None:
    starts = Starts()
    assert starts.percentile("p", 0.9) == PRIOR_SECONDS
    loaded = msgspec.structs.replace(version(), load_seconds=22.0)
    assert starts.percentile("p", 0.9, versions=[loaded]) == 32.0
    assert starts.percentile("p", 0.9, versions=[loaded, version()]) == PRIOR_SECONDS


def test_one_that_is_late_is_given_a_tenth_again_and_again() -> None:
    left = [ready_in_seconds(asked_at_ms=0, now_ms=now, usual_seconds=30.0) for now in (0, 20_000, 29_000, 500_000)]
    assert left == [30.0, 10.0, 3.0, 3.0]
