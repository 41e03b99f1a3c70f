"""What a running job has come to so far is told by its consumer alone, and forgotten with its end."""

from batchyard.jobs import State
from tests.services.store.yard import Yard, succeeded


def test_a_note_is_seen_while_the_job_runs_and_the_last_one_counts(yard: Yard) -> None:
    first, second = yard.claim(yard.submit(2))
    yard.store.report_progress([(first, b'"a"'), (second, b"1")], owner=yard.owner)
    yard.store.report_progress([(first, b'"ab"')], owner=yard.owner)
    assert yard.view(first.id).partial_body == b'"ab"'
    assert yard.view(second.id).partial_body == b"1"
    assert yard.store.forget_progress(limit=10) == 0
    yard.finish([succeeded(first)])
    assert yard.view(first.id).partial_body is None
    assert yard.store.forget_progress(limit=10) == 1
    assert yard.view(second.id).partial_body == b"1"


def test_nobody_else_and_no_earlier_attempt_tells(yard: Yard) -> None:
    ids = yard.submit(1)
    [stale] = yard.claim(ids)
    yard.store.report_progress([(stale, b'"old"')], owner=yard.owner)
    yard.store.release([stale], owner=yard.owner)
    assert yard.view(ids[0]).partial_body is None
    [held] = yard.claim(ids)
    assert yard.view(ids[0]).partial_body is None
    yard.store.report_progress([(stale, b'"late"')], owner=yard.owner)
    yard.store.report_progress([(held, b'"foreign"')], owner=yard.consumer())
    assert yard.view(ids[0]).partial_body is None
    assert yard.store.forget_progress(limit=10) == 1
    assert yard.view(ids[0]).state is State.RUNNING


def test_other_tenants_see_nothing_of_it(yard: Yard) -> None:
    [job] = yard.claim(yard.submit(1))
    yard.store.report_progress([(job, b'"mine"')], owner=yard.owner)
    assert yard.store.get_jobs([job.id], tenant_id=yard.tenant()) == []
