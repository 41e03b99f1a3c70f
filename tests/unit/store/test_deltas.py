from batchyard.jobs import State
from batchyard.store.deltas import HOUR_MS, Deltas, JobRow

JOB = JobRow(id=7, tenant_id=1, queue_id=2, state=0, priority=5, cost_estimate=30, deadline=90_000, bulk_id=4)


def test_a_move_leaves_one_sum_and_joins_another() -> None:
    deltas = Deltas()
    deltas.move(JOB, State.RUNNING)
    assert deltas.backlog_rows() == [(2, 1, 5, 0, 2, -1, -30), (2, 1, 5, 1, 2, 1, 30)]
    assert deltas.bulk_rows() == [(4, 0, -1, -30), (4, 1, 1, 30)]
    assert deltas.flushed == {}


def test_terminal_states_stand_in_bucket_zero_and_are_flushed_once() -> None:
    deltas = Deltas()
    deltas.move(JOB, State.EXPIRED)
    assert deltas.backlog_rows() == [(2, 1, 5, 0, 2, -1, -30), (2, 1, 5, 6, 0, 1, 30)]
    assert deltas.flushed == {4: [7]}


def test_what_cancels_out_is_not_written() -> None:
    deltas = Deltas()
    deltas.move(JOB, State.RUNNING)
    deltas.move(JOB._replace(state=1), State.QUEUED)
    assert deltas.backlog_rows() == []
    assert deltas.bulk_rows() == []


def test_a_new_priority_and_deadline_move_a_queued_job() -> None:
    deltas = Deltas()
    deltas.move(JOB, State.QUEUED, priority=-6, deadline_ms=180_000)
    assert deltas.backlog_rows() == [(2, 1, -6, 0, 3, 1, 30), (2, 1, 5, 0, 2, -1, -30)]


def test_a_deleted_job_leaves_the_backlog_for_the_retired_and_not_its_bulk() -> None:
    deltas = Deltas()
    deltas.drop(JOB._replace(state=3))
    assert deltas.backlog_rows() == [(2, 1, 5, -4, 0, 1, 30), (2, 1, 5, 3, 0, -1, -30)]
    assert deltas.bulk_rows() == []


def test_succeeded_jobs_count_their_exact_cost_in_the_bulk() -> None:
    deltas = Deltas()
    deltas.count(
        queue_id=2, tenant_id=1, priority=5, state=3, deadline_ms=None, bulk_id=4, jobs=2, cost=60, exact_cost=55
    )
    assert deltas.backlog_rows() == [(2, 1, 5, 3, 0, 2, 60)]
    assert deltas.bulk_rows() == [(4, 3, 2, 55)]


def test_usage_is_summed_by_the_hour() -> None:
    deltas = Deltas()
    deltas.use(tenant_id=1, queue_id=2, now_ms=HOUR_MS - 1, jobs=1, cost=3)
    deltas.use(tenant_id=1, queue_id=2, now_ms=HOUR_MS - 2, device_us=4, input_bytes=5)
    deltas.use(tenant_id=1, queue_id=2, now_ms=HOUR_MS, result_bytes=6, retired_bytes=7)
    assert deltas.usage_rows() == [(1, 2, 0, 1, 3, 4, 5, 0, 0), (1, 2, 1, 0, 0, 0, 0, 6, 7)]
