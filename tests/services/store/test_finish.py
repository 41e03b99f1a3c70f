"""Outcomes and releases: fences, cancellation, repeated writes, and what they leave in results, usage and counts."""

import msgspec

from batchyard.jobs import ErrorInfo, Outcome, State
from tests.services.store.yard import TENANT, Yard, eventually, failed, succeeded, waiting


def test_outcomes_of_every_kind_in_one_call(yard: Yard) -> None:
    good, bad, later, away = yard.claim(yard.submit(4))
    outcomes = [failed(bad), succeeded(good), Outcome(away, State.CANCELLED), waiting(later, retry_in_ms=60_000)]
    assert yard.finish(outcomes) == [bad.id, good.id, away.id, later.id]
    done = yard.view(good.id)
    assert (done.state, done.result_format, done.cost, done.device_us) == (State.SUCCEEDED, 0, 7, 3)
    assert done.result_body == b'{"id": %d, "input": %b}' % (good.id, good.input)
    assert done.finished_at_ms is not None
    broken = yard.view(bad.id)
    assert (broken.state, broken.failures, broken.result_body) == (State.FAILED, 1, None)
    assert broken.error == ErrorInfo(code="broken", message="it broke")
    backing_off = yard.view(later.id)
    assert (backing_off.state, backing_off.failures, backing_off.finished_at_ms) == (State.WAITING, 1, None)
    assert backing_off.error == ErrorInfo(code="model_busy", message="not now", retryable=True)
    assert backing_off.not_before_ms is not None
    assert backing_off.not_before_ms > yard.store.now_ms() + 30_000
    assert yard.view(away.id).state is State.CANCELLED


def test_results_may_be_binary_large_or_empty(yard: Yard) -> None:
    bodies = [b"", bytes(range(256)), b"z" * 3_000_000, b"\x00"]
    jobs = yard.claim(yard.submit(len(bodies)))
    outcomes = [
        msgspec.structs.replace(succeeded(job, body=body), format=1) for job, body in zip(jobs, bodies, strict=True)
    ]
    assert len(yard.finish(outcomes)) == len(bodies)
    for job, body in zip(jobs, bodies, strict=True):
        view = yard.view(job.id)
        assert (view.result_format, view.result_body) == (1, body)


def test_no_outcomes_write_nothing(yard: Yard) -> None:
    assert yard.finish([]) == []
    assert yard.store.release([], owner=yard.owner) == []


def test_another_owner_and_another_attempt_write_nothing(yard: Yard) -> None:
    ids = yard.submit(2)
    stale = yard.claim(ids)
    yard.store.release(stale, owner=yard.owner)
    other = yard.consumer()
    held = yard.claim(ids, owner=other)
    assert yard.finish([succeeded(job) for job in stale]) == []
    assert yard.finish([succeeded(job) for job in held]) == []
    assert yard.finish([succeeded(job) for job in stale], owner=other) == []
    assert yard.store.release(stale, owner=other) == []
    assert yard.states(ids) == [State.RUNNING, State.RUNNING]
    assert yard.finish([succeeded(job) for job in held], owner=other) == ids


def test_a_fenced_job_does_not_harm_the_others(yard: Yard) -> None:
    jobs = yard.claim(yard.submit(5))
    yard.store.release([jobs[1]], owner=yard.owner)
    written = yard.finish([succeeded(job) for job in jobs])
    assert written == [job.id for place, job in enumerate(jobs) if place != 1]
    assert yard.view(jobs[1].id).state is State.QUEUED
    assert yard.view(jobs[2].id).result_body is not None


def test_writing_again_after_a_lost_answer_is_safe(yard: Yard) -> None:
    bulk = yard.bulk()
    jobs = yard.claim(yard.submit(4, bulk_id=bulk.id))
    outcomes = [succeeded(jobs[0]), failed(jobs[1]), waiting(jobs[2], retry_in_ms=60_000), succeeded(jobs[3])]
    ids = [job.id for job in jobs]
    assert yard.finish(outcomes) == ids
    before = yard.store.usage()
    assert yard.finish(outcomes) == ids
    assert yard.store.usage() == before
    yard.number_flushes()
    rows = yard.store.bulk_results(bulk.id, after_seq=0, limit=10)
    assert sorted(row.id for row in rows) == [ids[0], ids[1], ids[3]]
    assert yard.view(ids[1]).failures == 1


def test_a_part_written_before_is_completed(yard: Yard) -> None:
    jobs = yard.claim(yard.submit(3))
    yard.finish([succeeded(jobs[1])])
    assert yard.finish([succeeded(job) for job in jobs]) == [job.id for job in jobs]
    assert yard.states(job.id for job in jobs) == [State.SUCCEEDED] * 3


def test_the_same_job_twice_in_a_call_is_written_once(yard: Yard) -> None:
    (job,) = yard.claim(yard.submit(1))
    assert yard.finish([succeeded(job), succeeded(job)]) == [job.id]
    assert [row.jobs for row in yard.store.usage()] == [1]


def test_a_terminal_result_is_never_touched(yard: Yard) -> None:
    (job,) = yard.claim(yard.submit(1))
    yard.finish([succeeded(job, body=b"1")])
    assert yard.finish([failed(job)]) == []
    view = yard.view(job.id)
    assert (view.state, view.result_body, view.failures) == (State.SUCCEEDED, b"1", 0)


def test_cancellation_asked_for_wins_over_every_outcome(yard: Yard) -> None:
    jobs = yard.claim(yard.submit(4))
    for job in jobs[:3]:
        assert yard.store.cancel(job.id, tenant_id=TENANT).state is State.RUNNING
    outcomes = [succeeded(jobs[0]), failed(jobs[1]), waiting(jobs[2]), succeeded(jobs[3])]
    assert yard.finish(outcomes) == [job.id for job in jobs]
    assert yard.states(job.id for job in jobs) == [State.CANCELLED] * 3 + [State.SUCCEEDED]
    assert yard.view(jobs[0].id).result_body is None
    assert yard.finish(outcomes) == [job.id for job in jobs]


def test_retries_keep_the_last_error_until_a_result_takes_its_place(yard: Yard) -> None:
    ids = yard.submit(2)
    for failures in (1, 2):
        yard.fail_for_now(ids)
        eventually(lambda: bool(yard.store.promote_due(limit=10)))
        assert {yard.view(job_id).failures for job_id in ids} == {failures}
    first, second = yard.claim(ids)
    assert (first.failures, first.attempt) == (2, 3)
    yard.finish([succeeded(first), failed(second)])
    assert yard.view(first.id).error is None
    assert yard.view(second.id).error == ErrorInfo(code="broken", message="it broke")
    assert yard.view(second.id).failures == 3


def test_release_hands_back_uncharged_but_for_what_is_named(yard: Yard) -> None:
    ids = yard.submit(3)
    plain, preempted, suspect = yard.claim(ids)
    assert yard.store.release([plain], owner=yard.owner) == [plain.id]
    assert yard.store.release([preempted], owner=yard.owner, preempted=True) == [preempted.id]
    assert yard.store.release([suspect], owner=yard.owner, suspect=True) == [suspect.id]
    views = [yard.view(job_id) for job_id in ids]
    assert [(view.failures, view.preemptions, view.crashes) for view in views] == [(0, 0, 0), (0, 1, 0), (0, 0, 0)]
    assert [job.suspect for job in yard.claim(ids)] == [False, False, True]


def test_release_cancels_where_that_was_asked_for(yard: Yard) -> None:
    jobs = yard.claim(yard.submit(2))
    yard.store.cancel(jobs[0].id, tenant_id=TENANT)
    assert yard.store.release(jobs, owner=yard.owner) == [jobs[1].id]
    assert yard.states(job.id for job in jobs) == [State.CANCELLED, State.QUEUED]


def test_usage_counts_what_succeeded(yard: Yard) -> None:
    jobs = yard.claim(yard.submit(3))
    yard.finish(
        [
            succeeded(jobs[0], body=b"1234", cost=10, device_us=5),
            succeeded(jobs[1], body=b"12", cost=1),
            failed(jobs[2]),
        ]
    )
    (row,) = yard.store.usage()
    assert (row.jobs, row.cost, row.device_us) == (2, 11, 8)
    assert row.result_bytes >= 6
    assert yard.store.usage(since_hour=row.hour + 1) == []


def test_time_of_the_device_adds_up_over_attempts_whatever_became_of_them(yard: Yard) -> None:
    retried, lost, away = yard.claim(yard.submit(3))
    yard.store.cancel(away.id, tenant_id=TENANT)
    had = msgspec.structs.replace
    unsuccessful = [had(waiting(retried), device_us=20), had(failed(lost), device_us=300)]
    yard.finish([*unsuccessful, succeeded(away, device_us=4000)])
    eventually(lambda: bool(yard.store.promote_due(limit=10)))
    [again] = yard.claim([retried.id])
    yard.finish([succeeded(again, device_us=1)])
    assert [yard.view(job.id).device_us for job in (retried, lost)] == [21, 300]
    yard.store.fold(limit=1000)
    (row,) = yard.store.usage()
    assert (row.jobs, row.device_us) == (1, 4321)


def test_jobs_of_several_attempts_and_queues_finish_together(yard: Yard) -> None:
    again = yard.submit(2)
    yard.store.release(yard.claim(again), owner=yard.owner)
    fresh = yard.submit(2, queue_id=yard.tolerant, priority=1)
    jobs = yard.claim(again) + yard.claim(fresh, queue=yard.tolerant)
    assert {job.attempt for job in jobs} == {1, 2}
    assert yard.finish([succeeded(job) for job in jobs]) == [job.id for job in jobs]
    for job in jobs:
        assert yard.view(job.id).result_body == b'{"id": %d, "input": %b}' % (job.id, job.input)
