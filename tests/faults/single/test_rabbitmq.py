"""What RabbitMQ alone does to a ticket: a consumer's timeout, and a message delivered too often."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from batchyard.broker.application import consumer_queue
from batchyard.jobs import Lane, State
from tests.faults.single.factors import shortened
from tests.servers import Server, ServerUnavailable, rabbitmq_server
from tests.services.consumers.yard import Yard, until, yard
from tests.services.store.yard import check_ledgers

MOODY = """
[models.moody]
runtime = "batchyard_consumers.samples:Moody"
batch_budget = 4
[pools.local]
models = ["moody"]
drain_seconds = 2
"""
TIMEOUT_SECONDS = 2.0
DELIVERIES = 25


@pytest.fixture(scope="module")
def hasty_rabbitmq() -> Iterator[Server]:
    """It gives up on a consumer that holds a message for two seconds, and looks twice a second."""
    shortened("consumer timeout", TIMEOUT_SECONDS, stated=1800.0)
    timeout = f"-rabbit consumer_timeout {round(TIMEOUT_SECONDS * 1000)} -rabbit channel_tick_interval 500"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", timeout)
        try:
            with rabbitmq_server() as server:
                yield server
        except ServerUnavailable as missing:
            pytest.skip(str(missing))


@pytest.fixture
def place(hasty_rabbitmq: Server, tmp_path: Path) -> Iterator[Yard]:
    with yard(tmp_path, models=MOODY, broker_url=hasty_rabbitmq.url) as made:
        yield made


def test_a_consumer_whose_tickets_are_timed_out_goes_on(place: Yard, hasty_rabbitmq: Server) -> None:
    """Its hands are full for longer than the broker waits for an acknowledgement."""
    worker = place.start()
    place.ready()
    slow = place.submit("moody@1", [{"do": "sleep", "value": 0.4}] * 24, tickets=False)
    queue_id = place.versions["moody@1"].queue_ids[Lane.FIRM]
    for job_id in slow:
        place.ticket(queue_id, [job_id])
    assert {view.state for view in place.finish(slow)} == {State.SUCCEEDED}
    logs = [path.read_text() for path in hasty_rabbitmq.directory.rglob("*.log")]
    assert any("waiting for delivery acknowledgement" in text for text in logs), "the broker had to lose its patience"
    quick = place.submit("moody@1", [{"do": "echo", "value": n} for n in range(100)])
    place.finish(quick)
    name = place.broker_name(queue_id)
    until(lambda: place.broker.depth(name) == 0, yard=place)
    assert {view.attempt for view in place.view([*slow, *quick])} == {1}
    assert worker.poll() is None
    check_ledgers(place.store)


def test_a_ticket_delivered_too_often_may_be_dropped(place: Yard, hasty_rabbitmq: Server) -> None:
    """Delivered to consumers that die with it, again and again, until a broker with a limit lets go of it."""
    queue_id = place.versions["moody@1"].queue_ids[Lane.FIRM]
    name = place.broker_name(queue_id)
    ids = place.submit("moody@1", [{"do": "echo", "value": n} for n in range(50)])
    for _ in range(DELIVERIES):
        take_and_die(hasty_rabbitmq.url, name)
    place.start()
    place.ready()
    assert {view.attempt for view in place.finish(ids)} == {1}
    assert place.states(ids) == {State.SUCCEEDED: 50}


def take_and_die(url: str, name: str) -> None:
    with kombu.Connection(url) as connection, connection.channel() as channel:
        queue: Any = consumer_queue(name, url)(channel)
        queue.declare()
        queue.get(no_ack=False)
