"""Packets to a broker or a database, or from it, are dropped on the way: nobody is refused, and nobody is told."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from batchyard.jobs import State
from tests.faults.network import WAYS, Network, NoNetwork, network
from tests.faults.single.factors import shortened
from tests.faults.single.system import BLOCKED_SECONDS, System, system
from tests.services.consumers.yard import until

OUTAGE_SECONDS = 4.0
RESUME_SECONDS = 15.0


@pytest.fixture(scope="module")
def lossy() -> Iterator[Network]:
    try:
        with network() as made:
            yield made
    except NoNetwork as refused:
        pytest.skip(str(refused))


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def brokered(
    request: pytest.FixtureRequest, lossy: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    with (
        lossy.serving(request.param) as url,
        system(tmp_path_factory.mktemp(request.param), broker_url=url) as running,
    ):
        running.finish(running.accepted(*range(100)))
        yield running


@pytest.mark.parametrize("way", WAYS)
def test_jobs_go_on_while_packets_to_the_broker_or_from_it_are_lost(brokered: System, lossy: Network, way: str) -> None:
    seconds = shortened("outage", OUTAGE_SECONDS, stated=60.0)
    with lossy.dropping(way), brokered.stays_alive():
        ids, slowest = brokered.slowest_answers(seconds=seconds)
        assert slowest < BLOCKED_SECONDS
        brokered.finish(ids, timeout=RESUME_SECONDS)
    began = time.monotonic()
    until(brokered.takes_tickets, timeout=RESUME_SECONDS, yard=brokered.place)
    print(f"consuming again after {time.monotonic() - began:.1f} s")
    assert {view.attempt for view in brokered.place.view(ids)} == {1}
    brokered.settle()


@pytest.fixture(scope="module")
def stored(lossy: Network, valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with (
        lossy.serving("postgres") as url,
        system(tmp_path_factory.mktemp("postgres"), broker_url=valkey_url, database=url) as running,
    ):
        running.finish(running.accepted(*range(100)))
        yield running


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost_or_doubled_while_packets_to_the_database_or_from_it_are(
    stored: System, lossy: Network, way: str
) -> None:
    """Where answers are lost, what was asked for is done and nobody knows."""
    keys = [f"{way}-{number}" for number in range(20)]
    before = stored.accepted(*range(500))
    with ThreadPoolExecutor(1) as thread:
        with lossy.dropping(way), stored.stays_alive():
            asking = thread.submit(stored.submit_under, keys)
            time.sleep(shortened("outage", OUTAGE_SECONDS, stated=300.0))
            assert not asking.done()
        began = time.monotonic()
        stored.finish(stored.accepted(1), timeout=RESUME_SECONDS)
        print(f"accepting and working again after {time.monotonic() - began:.1f} s")
        ids = asking.result()
    assert stored.submit_under(keys) == ids, "each key has one job, whatever became of its first call"
    stored.finish([*before, *ids])
    assert stored.place.states([*before, *ids]) == {State.SUCCEEDED: 520}
    stored.settle()
