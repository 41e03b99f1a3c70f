"""When a job that the leader has passed is ticketed again."""

from batchyard_producer.stragglers import CONFIRM_SECONDS, Stragglers


def test_a_straggler_is_due_when_it_is_seen_again() -> None:
    stragglers = Stragglers(first_delay_seconds=5)
    assert stragglers.due([1, 2], known=set(), now=0) == []
    assert stragglers.due([1, 2], known=set(), now=CONFIRM_SECONDS / 2) == []
    assert stragglers.due([2], known=set(), now=CONFIRM_SECONDS) == [2]


def test_what_is_known_to_be_ticketed_is_not_due() -> None:
    stragglers = Stragglers(first_delay_seconds=5)
    for now in range(10):
        assert stragglers.due([1], known={1}, now=now) == []
    assert stragglers.due([1], known=set(), now=10) == []
    assert stragglers.due([1], known=set(), now=11) == [1]


def test_the_delay_doubles() -> None:
    stragglers = Stragglers(first_delay_seconds=5)
    due = [now for now in range(200) if stragglers.due([1], known=set(), now=now)]
    assert due == [1, 6, 16, 36, 76, 156]


def test_a_job_that_was_claimed_begins_anew() -> None:
    stragglers = Stragglers(first_delay_seconds=5)
    stragglers.due([1], known=set(), now=0)
    assert stragglers.due([1], known=set(), now=1) == [1]
    stragglers.due([], known=set(), now=20)
    assert stragglers.due([1], known=set(), now=21) == []
    assert stragglers.due([1], known=set(), now=22) == [1]
