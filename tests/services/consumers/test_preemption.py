"""Real consumers on machines that a cloud takes back, as a stand-in for its metadata service tells."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.jobs import Lane, State
from batchyard.store.base import ConsumerInfo
from tests.servers.metadata import MetadataService, metadata_service
from tests.services.consumers.yard import Yard, until, yard

MOODY = """
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
batch_budget = 1
"""
NOTICE_SECONDS = 10.0
CLOUDS = ("aws", "gcp", "azure")
ZONES = {"aws": "us-east-1c", "gcp": "europe-west4-b", "azure": "westeurope-2"}


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with metadata_service() as service:
        yield service


@pytest.fixture
def spot(tmp_path: Path, valkey_url: str, service: MetadataService) -> Iterator[Yard]:
    """A pool for each cloud."""
    pools = "".join(
        f'[pools.{cloud}]\nmodels = ["moody"]\ncapacity = "spot"\ndrain_seconds = 300\n'
        f'cloud = "{cloud}"\nmetadata_url = "{service.url}"\n'
        for cloud in CLOUDS
    )
    with yard(tmp_path, models=MOODY, broker_url=valkey_url, extra=pools) as made:
        yield made


def consumers(spot: Yard) -> dict[str, ConsumerInfo]:
    return {info.pool: info for info in spot.store.consumers()}


def test_a_notice_drains_in_time_and_costs_no_job_anything(spot: Yard, service: MetadataService) -> None:
    workers = {cloud: spot.start(cloud) for cloud in CLOUDS}
    spot.ready(3)
    until(lambda: {cloud: info.zone for cloud, info in consumers(spot).items()} == ZONES, yard=spot)
    # Longer than any notice, so that each consumer holds one until its drain gives it up.
    ids = spot.submit("moody@1", [{"do": "sleep", "value": 100.0}] * 30, lane=Lane.TOLERANT)
    until(lambda: all(sum(info.stats["held"].values()) for info in consumers(spot).values()), yard=spot)

    service.interrupt(in_seconds=NOTICE_SECONDS)
    service.evict(in_seconds=NOTICE_SECONDS)
    service.preempt()

    left = {"aws", "azure"}
    gone = {"gone"}
    until(
        lambda: {info.state for pool, info in consumers(spot).items() if pool in left} == gone,
        timeout=NOTICE_SECONDS,
        yard=spot,
    )
    until(lambda: all(info.preempted_at_ms for info in consumers(spot).values()), yard=spot)
    # The process stays, so that nobody starts another on a machine that goes; and ends when it is told to.
    assert [workers[cloud].poll() for cloud in CLOUDS] == [None] * 3
    workers["gcp"].send_signal(signal.SIGTERM)
    for worker in workers.values():
        until(lambda worker=worker: worker.send_signal(signal.SIGTERM) or worker.poll() is not None, yard=spot)  # type: ignore[misc]
        assert worker.returncode == 0
    views = spot.view(ids)
    assert {view.state for view in views} == {State.QUEUED}
    assert {(view.failures, view.crashes) for view in views} == {(0, 0)}
    claimed = [view for view in views if view.attempt]
    assert [view.preemptions for view in claimed] == [view.attempt for view in claimed]
