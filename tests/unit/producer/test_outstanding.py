"""What the leader remembers of a queue's tickets."""

from batchyard.broker import TICKET_JOBS
from batchyard_producer.outstanding import MAX_LEFT_JOBS, Outstanding

A, B = (1, 5), (2, 5)


def test_the_newest_tickets_are_still_out() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish(range(1, 301), now=0, cursors={A: 300})
    assert tickets.jobs == 300
    assert tickets.trim(3, now=1, settled_before=1) == 0
    assert tickets.trim(1, now=1, settled_before=1) == 256
    assert tickets.jobs == 44
    assert tickets.trim(0, now=1, settled_before=1) == 44
    assert tickets.jobs == 0


def test_a_depth_that_cannot_count_a_ticket_yet_drops_none() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1], now=1.0)
    assert tickets.trim(0, now=1.01, settled_before=0.96) == 0
    assert tickets.trim(0, now=1.06, settled_before=1.01) == 1


def test_tickets_of_others_count_by_their_usual_size() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1], now=0)
    tickets.trim(3, now=0, settled_before=0)
    assert tickets.jobs == 1 + 2 * TICKET_JOBS
    tickets.foreign_ticket_jobs = 3.2
    assert tickets.jobs == 1 + 6


def test_jobs_are_known_until_some_time_after_their_ticket_left() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1, 2], now=0)
    tickets.overlook([3], now=0)
    tickets.trim(1, now=100, settled_before=100)
    assert tickets.known == {1, 2}
    tickets.trim(0, now=100, settled_before=100)
    tickets.trim(0, now=104, settled_before=104)
    assert tickets.known == {1, 2}
    tickets.trim(0, now=105, settled_before=105)
    assert tickets.known == set()


def test_what_is_remembered_is_bounded() -> None:
    tickets = Outstanding(remember_seconds=1e9)
    for first in range(1, 5 * MAX_LEFT_JOBS, 10_000):
        tickets.publish(range(first, first + 10_000), now=0)
        tickets.trim(0, now=0, settled_before=0)
    assert MAX_LEFT_JOBS - TICKET_JOBS <= len(tickets.known) <= MAX_LEFT_JOBS


def test_below_the_oldest_ticket_nothing_is_out() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1, 2], now=0, cursors={A: 2})
    tickets.publish([3, 10], now=0, cursors={A: 3, B: 10})
    assert tickets.below() == {}
    tickets.trim(1, now=1, settled_before=1)
    assert tickets.below() == {A: 3}
    tickets.trim(0, now=1, settled_before=1)
    assert tickets.below() == {A: 4, B: 11}


def test_setting_back_never_goes_forward() -> None:
    tickets = Outstanding(remember_seconds=5)
    tickets.publish([1, 9], now=0, cursors={A: 1, B: 9})
    tickets.set_back(5)
    assert tickets.cursors == {A: 1, B: 4}
