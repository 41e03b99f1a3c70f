"""Tickets published by the submitter: the allowance, the fanout that brings it, and the publisher's thread."""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from batchyard import ticketing
from batchyard.broker import MOST_TICKET_JOBS, TICKET_JOBS, Broker, Ticket
from batchyard.errors import BrokerDown
from batchyard.jobs import Accepted, Submission
from batchyard.ticketing import (
    CONTROL_TOPIC,
    LONGEST_PATIENCE_SECONDS,
    MAX_PENDING_JOBS,
    Allowance,
    ControlLink,
    Grant,
    TicketPublisher,
    patience_seconds,
    ticket_jobs,
)
from tests.services.fleet import until


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker("memory://")
    yield broker
    broker.close()


def submission(queue_id: int, *, ticketed: bool) -> Submission:
    return Submission(tenant_id=1, queue_id=queue_id, inputs=[b"1"], costs=[1], ticketed=ticketed)


def accepted(*ids: int, replayed: bool = False) -> Accepted:
    return Accepted(ids=ids, created_at_ms=0, replayed=replayed)


class RecordingBroker:
    """Takes tickets; can be made to fail, and to hold a publish until it is let go."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, int, list[int]]]] = []
        self.fault: Exception | None = None
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Event()

    def publish_many(self, batches: Sequence[tuple[str, Sequence[Ticket]]]) -> int:
        self.began.set()
        self.may_go.wait(10)
        if self.fault is not None:
            raise self.fault
        tickets = [(name, ticket) for name, of_queue in batches for ticket in of_queue]
        self.calls.append([(name, ticket.queue_id, list(ticket.ids)) for name, ticket in tickets])
        return len(tickets)

    def shout(self, topic: str, payload: bytes) -> None:
        """Nobody listens."""


def publisher(broker: Any, **more: Any) -> TicketPublisher:
    link = ControlLink(broker, Allowance())
    return TicketPublisher(broker, names=lambda queue_id: f"q{queue_id}" if queue_id < 9 else None, link=link, **more)


@pytest.fixture
def recording() -> RecordingBroker:
    return RecordingBroker()


@pytest.mark.parametrize(
    ("seconds_per_job", "jobs"),
    [
        (None, TICKET_JOBS),
        (0.0, TICKET_JOBS),
        (1e-6, MOST_TICKET_JOBS),
        (2.5e-4, 500),
        (1e-3, TICKET_JOBS),
        (0.01, 50),
        (0.3, 2),
        (1.0, 1),
        (3600.0, 1),
    ],
)
def test_a_ticket_names_half_a_second_of_work(seconds_per_job: float | None, jobs: int) -> None:
    assert ticket_jobs(seconds_per_job) == jobs


@pytest.mark.parametrize(
    ("jobs", "seconds_per_job", "is_busy", "seconds"),
    [
        (1, 1e-5, True, 5),
        (4 * 128, 1.0, True, 2 * 4 * 128),
        (4, 10.0, True, 80),
        (4 * 128, 1.0, False, 5),
        (4 * 128, 100.0, True, LONGEST_PATIENCE_SECONDS),
        (4 * 128, None, True, LONGEST_PATIENCE_SECONDS),
        (4 * 128, None, False, 5),
    ],
)
def test_a_ticket_is_not_lost_while_a_consumer_may_be_working_towards_it(
    jobs: int, seconds_per_job: float | None, is_busy: bool, seconds: float
) -> None:
    assert patience_seconds(jobs=jobs, seconds_per_job=seconds_per_job, is_busy=is_busy, least=5) == seconds


def test_an_allowance_is_used_up_and_runs_out() -> None:
    clock = Clock()
    allowance = Allowance(clock=clock)
    assert not allowance.take(1, 1)
    allowance.grant(1, Grant(10))
    assert allowance.take(1, 4)
    assert not allowance.take(1, 7), "what does not fit takes nothing"
    assert allowance.take(1, 6)
    assert not allowance.take(1, 1)
    allowance.grant(1, Grant(10))
    clock.now = 1.0
    assert not allowance.take(1, 1)
    allowance.grant(1, Grant(10))
    allowance.revoke(1)
    assert not allowance.take(1, 1)
    allowance.grant(1, Grant(10))
    allowance.clear()
    assert not allowance.take(1, 1)
    assert allowance.taken() == {1: 10}
    assert allowance.taken() == {}


def test_grants_and_wants_travel_over_the_broker(broker: Broker) -> None:
    wants: list[tuple[int, ...]] = []
    allowances = [Allowance() for _ in range(3)]
    leader, *others = (
        ControlLink(broker, allowance, on_want=lambda _, queue_ids: wants.append(tuple(queue_ids)))
        for allowance in allowances
    )
    for link in (leader, *others):
        link.start()
        assert link.wait_connected(timeout_seconds=5)
    broker.shout(CONTROL_TOPIC, b"\xffnonsense")
    broker.shout(CONTROL_TOPIC, b'{"kind": "grant", "sender": "x", "grants": {"1": "many"}}')
    broker.shout(CONTROL_TOPIC, b'{"kind": "grant", "sender": "x", "grants": {"4": [2, 0]}}')
    others[0].want([4, 7], waiting=True)
    until(lambda: len(wants) == 2)
    assert set(wants) == {(4, 7)}
    leader.grant({4: Grant(2, 7)})
    until(lambda: all(allowance.take(4, 2) for allowance in allowances[1:2]))
    until(lambda: allowances[2].take(4, 2))
    assert allowances[2].ticket_jobs(4) == 7
    assert not allowances[0].take(4, 1), "the leader's own allowance does not come this way"
    for link in (leader, *others):
        link.close()


def test_a_process_says_seldom_what_it_wants(recording: RecordingBroker) -> None:
    said: list[bytes] = []
    recording.shout = lambda topic, payload: said.append(payload)  # type: ignore[method-assign]
    link = ControlLink(recording, Allowance())  # type: ignore[arg-type]
    for _ in range(1000):
        link.want([1], waiting=True)
        link.want([1], waiting=False)
    assert 1 <= len(said) <= 5
    link.is_quiet = True
    said.clear()
    time.sleep(0.06)  # longer than the pause between two wakes
    link.want([1], waiting=True)
    assert said == []


def test_only_what_was_marked_is_ticketed_and_the_rest_told(recording: RecordingBroker) -> None:
    told: list[set[int]] = []
    tickets = publisher(recording, wake=lambda queue_ids: told.append(set(queue_ids)))
    tickets.start()
    tickets.committed(
        [
            submission(1, ticketed=True),
            submission(1, ticketed=True),
            submission(2, ticketed=False),
            submission(3, ticketed=True),
            submission(4, ticketed=True),
        ],
        [accepted(1, 2), accepted(3), accepted(4), BrokerDown("x"), accepted(5, replayed=True)],
    )
    tickets.close()
    assert [call for call in recording.calls if call] == [[("q1", 1, [1, 2, 3])]]
    assert told == [{2}]


def test_what_comes_while_a_publish_runs_is_gathered(recording: RecordingBroker) -> None:
    link = ControlLink(recording, Allowance())  # type: ignore[arg-type]
    tickets = TicketPublisher(recording, names=lambda queue_id: f"q{queue_id}", link=link)  # type: ignore[arg-type]
    recording.may_go.clear()
    tickets.start()
    tickets.offer(1, [1])
    assert recording.began.wait(5)
    for job_id in range(2, 200):
        tickets.offer(1 + job_id % 2, [job_id])
    recording.may_go.set()
    tickets.close()
    assert link.ticket_jobs < TICKET_JOBS
    assert recording.calls[0] == [("q1", 1, [1])]
    assert sorted(recording.calls[1]) == [
        ("q1", 1, list(range(2, 200, 2))),
        ("q2", 2, list(range(3, 200, 2))),
    ]


def test_the_first_ticket_leaves_at_once_and_those_that_follow_are_gathered(
    recording: RecordingBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticketing, "PACE_SECONDS", 30.0)
    tickets = publisher(recording)
    tickets.start()
    tickets.offer(1, [1])
    until(lambda: len(recording.calls) == 1)
    tickets.offer(1, [2])
    time.sleep(0.2)  # by far enough for a ticket to leave that does not wait for others
    tickets.offer(2, [3])
    assert len(recording.calls) == 1
    tickets.close()
    assert recording.calls[1:] == [[("q1", 1, [2]), ("q2", 2, [3])]]


def test_a_full_ticket_waits_for_no_others(recording: RecordingBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticketing, "PACE_SECONDS", 30.0)
    tickets = publisher(recording)
    tickets.start()
    for number in range(3):
        tickets.offer(1, range(TICKET_JOBS))
        until(lambda number=number: len(recording.calls) == number + 1)  # type: ignore[misc]
    tickets.close()


@pytest.mark.parametrize("fault", [BrokerDown("away"), ValueError("a bug")])
def test_the_thread_outlives_every_fault(recording: RecordingBroker, fault: Exception) -> None:
    tickets = publisher(recording)
    recording.fault = fault
    tickets.start()
    tickets.offer(1, [1])
    assert recording.began.wait(5)
    until(lambda: not tickets.is_busy)
    recording.fault = None
    tickets.offer(1, [2])
    tickets.close()
    assert recording.calls == [[("q1", 1, [2])]]


def test_tickets_are_cut_to_the_size_granted(recording: RecordingBroker) -> None:
    link = ControlLink(recording, Allowance())  # type: ignore[arg-type]
    link.allowance.grant(1, Grant(10, 2))
    tickets = TicketPublisher(recording, names=lambda _: "q", link=link)  # type: ignore[arg-type]
    tickets.start()
    tickets.offer(1, [1, 2, 3])
    tickets.close()
    assert recording.calls == [[("q", 1, [1, 2]), ("q", 1, [3])]]


def test_an_allowance_is_void_once_the_broker_fails(recording: RecordingBroker) -> None:
    link = ControlLink(recording, Allowance())  # type: ignore[arg-type]
    link.allowance.grant(1, Grant(10))
    tickets = TicketPublisher(recording, names=lambda _: "q", link=link)  # type: ignore[arg-type]
    recording.fault = BrokerDown("away")
    tickets.start()
    tickets.offer(1, [1])
    tickets.close()
    assert not link.allowance.take(1, 1)


def test_what_waits_is_bounded_and_nobody_blocks(recording: RecordingBroker) -> None:
    tickets = publisher(recording)
    recording.may_go.clear()
    tickets.start()
    tickets.offer(1, [1])
    assert recording.began.wait(5)
    for _ in range(3):
        tickets.offer(1, range(1, MAX_PENDING_JOBS))
    recording.may_go.set()
    tickets.close()
    assert sum(len(ids) for _, _, ids in recording.calls[1]) == MAX_PENDING_JOBS - 1


def test_a_queue_without_a_name_is_left_to_the_leader(recording: RecordingBroker) -> None:
    tickets = publisher(recording)
    tickets.start()
    tickets.offer(9, [1])
    tickets.close()
    assert recording.calls == [[]]


def test_tickets_reach_the_broker(broker: Broker) -> None:
    name = uuid.uuid4().hex
    tickets = TicketPublisher(broker, names=lambda _: name, link=ControlLink(broker, Allowance()))
    tickets.start()
    tickets.offer(1, range(1, 300))
    until(lambda: broker.depth(name) == 3)
    tickets.close()
