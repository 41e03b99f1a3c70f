"""What of a backlog counts as work for a pool."""

from batchyard.jobs import Lane, State
from batchyard_scaler.sizing import backlogs
from tests.unit.scaler.queues import row, version


def test_what_counts_as_work() -> None:
    rows = [
        row(1),
        row(2, state=State.RUNNING),
        row(4, state=State.WAITING),
        row(8, state=State.SUCCEEDED),
        row(16, priority=-6),
        row(32, queue_id=2, cost=10),
        row(64, queue_id=3),
    ]

    both = backlogs([version(speed=0.5)], rows, capacity="on_demand")
    assert [(queue.name, queue.jobs, queue.seconds) for queue in both] == [
        ("m@1 firm", 3, 0.0),
        ("m@1 tolerant", 32, 5.0),
    ]
    [spot] = backlogs([version()], rows, capacity="spot")
    assert (spot.jobs, spot.seconds) == (32, None)


def test_a_paused_queue_is_no_work_but_for_what_runs() -> None:
    rows = [row(1), row(2, state=State.RUNNING)]

    firm, _ = backlogs([version(paused=frozenset({Lane.FIRM}))], rows, capacity="on_demand")

    assert firm.jobs == 2
