"""What the leader remembers of a queue's tickets."""

from batchyard.broker import TICKET_JOBS
from batchyard.ticketing import FIRST_PREFETCH
from batchyard_producer.outstanding import MAX_LEFT_JOBS, Outstanding

A, B = (1, 5), (2, 5)


def test_the_newest_tickets_are_still_out() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish(range(1, 301), ticket_jobs=TICKET_JOBS, now=0, cursors={A: 300})
    assert tickets.jobs == 300
    assert tickets.trim(3, now=1, settled_before=1) == 0
    assert tickets.trim(1, now=1, settled_before=1) == 256
    assert tickets.jobs == 44
    assert tickets.trim(0, now=1, settled_before=1) == 44
    assert tickets.jobs == 0


def test_a_depth_that_cannot_count_a_ticket_yet_drops_none() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1], ticket_jobs=TICKET_JOBS, now=1.0)
    assert tickets.trim(0, now=1.01, settled_before=0.96) == 0
    assert tickets.trim(0, now=1.06, settled_before=1.01) == 1


def test_tickets_of_others_count_by_their_usual_size() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1], ticket_jobs=TICKET_JOBS, now=0)
    tickets.trim(3, now=0, settled_before=0)
    assert tickets.jobs == 1 + 2 * TICKET_JOBS
    tickets.foreign_ticket_jobs = 3.2
    assert tickets.jobs == 1 + 6


def test_jobs_are_known_until_some_time_after_their_ticket_left() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1, 2], ticket_jobs=TICKET_JOBS, now=0)
    tickets.overlook([3], now=0)
    tickets.trim(1, now=100, settled_before=100)
    assert tickets.known == {1, 2}
    tickets.trim(0, now=100, settled_before=100)
    tickets.trim(0, now=104, settled_before=104)
    assert tickets.known == {1, 2}
    tickets.trim(0, now=105, settled_before=105)
    assert tickets.known == set()


def in_a_consumers_hands(*, seconds_per_job: float | None, is_busy: bool = True) -> Outstanding:
    """One full ticket that left the broker at 0."""
    tickets = Outstanding(remember_seconds=5)
    tickets.seconds_per_job, tickets.is_busy = seconds_per_job, is_busy
    tickets.publish(range(1, 129), ticket_jobs=TICKET_JOBS, now=0)
    tickets.trim(0, now=0, settled_before=0)
    return tickets


def known_until(tickets: Outstanding, *, until: int = 2000) -> int:
    """The last second, up to some, at which its jobs are still known."""
    last = 0
    for now in range(0, until, 5):
        tickets.trim(0, now=now, settled_before=now)
        last = now if tickets.known else last
    return last


def test_a_ticket_stays_known_while_a_consumer_may_be_working_towards_it() -> None:
    assert known_until(in_a_consumers_hands(seconds_per_job=1e-4)) == 0
    assert known_until(in_a_consumers_hands(seconds_per_job=1.0)) == 2 * FIRST_PREFETCH * 128 - 4
    assert known_until(in_a_consumers_hands(seconds_per_job=1.0, is_busy=False)) == 0


def test_what_is_learned_later_holds_for_tickets_that_left_before() -> None:
    tickets = in_a_consumers_hands(seconds_per_job=None)
    assert known_until(tickets, until=100) == 95
    tickets.seconds_per_job = 0.2
    assert known_until(tickets) == 200


def test_a_lost_consumer_holds_nothing() -> None:
    tickets = in_a_consumers_hands(seconds_per_job=1.0)
    assert known_until(tickets, until=100) == 95
    tickets.doubt(now=100)
    tickets.trim(0, now=105, settled_before=105)
    assert tickets.known == set()


def test_tickets_of_others_take_their_turn_behind_what_is_out() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.seconds_per_job, tickets.is_busy, tickets.foreign_ticket_jobs, tickets.consumers = 1.0, True, 1.0, 2
    tickets.trim(100, now=0, settled_before=0)
    assert tickets.ticketed_seconds == 2 * 100 / 2
    tickets.overlook([7], now=0)
    assert known_until(tickets) == 100


def test_what_is_remembered_is_bounded() -> None:
    tickets = Outstanding(remember_seconds=1e9)
    for first in range(1, 5 * MAX_LEFT_JOBS, 10_000):
        tickets.publish(range(first, first + 10_000), ticket_jobs=TICKET_JOBS, now=0)
        tickets.trim(0, now=0, settled_before=0)
    assert MAX_LEFT_JOBS - TICKET_JOBS <= len(tickets.known) <= MAX_LEFT_JOBS


def test_below_the_oldest_ticket_nothing_is_out() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1, 2], ticket_jobs=TICKET_JOBS, now=0, cursors={A: 2})
    tickets.publish([3, 10], ticket_jobs=TICKET_JOBS, now=0, cursors={A: 3, B: 10})
    assert tickets.below() == {}
    tickets.trim(1, now=1, settled_before=1)
    assert tickets.below() == {A: 3}
    tickets.trim(0, now=1, settled_before=1)
    assert tickets.below() == {A: 4, B: 11}


def test_setting_back_never_goes_forward() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1, 9], ticket_jobs=TICKET_JOBS, now=0, cursors={A: 1, B: 9})
    tickets.set_back(5)
    assert tickets.cursors == {A: 1, B: 4}
