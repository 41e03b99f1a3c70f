"""Submission: rows, ids, idempotency keys, bulks, errors that harm nobody else."""

from batchyard.errors import Conflict, IdempotencyConflict, NotFound
from batchyard.jobs import ID_STRIDE, Accepted, State
from batchyard.store.base import JobStore
from tests.services.store.yard import TENANT, Yard


def test_no_submissions_make_nothing(store: JobStore) -> None:
    assert store.submit([]) == []


def test_ids_of_a_call_are_consecutive_and_later_calls_stand_behind(yard: Yard) -> None:
    first, second = yard.submit(3), yard.submit(2)
    assert first == [first[0] + place * ID_STRIDE for place in range(3)]
    assert second[0] > first[-1]


def test_a_job_keeps_everything_it_was_given(yard: Yard) -> None:
    (job_id,) = yard.submit(
        1,
        inputs=['{"text": "grün\\u0000"}'.encode()],
        costs=[42],
        priority=7,
        deadline_ms=2_000_000_000_000,
        start_by_ms=1_999_999_000_000,
        max_failures=5,
        params=b'{"k": 1}',
        labels=["a", "ü"],
        custom_ids=["mine"],
        input_digests=[b"\x00\xff"],
        created_by="by_abc",
        trace_context="00-1-2-01",
        affinity_key="doc",
        max_cost=99,
        redrive_of=12345,
    )
    view = yard.view(job_id)
    assert (view.state, view.priority, view.cost_estimate, view.max_failures) == (State.QUEUED, 7, 42, 5)
    assert (view.deadline_ms, view.labels, view.custom_id, view.redrive_of) == (
        2_000_000_000_000,
        ("a", "ü"),
        "mine",
        12345,
    )
    (job,) = yard.claim([job_id])
    assert (job.input, job.params, job.tenant_id) == ('{"text": "grün\\u0000"}'.encode(), b'{"k": 1}', TENANT)
    assert (job.attempt, job.cost_estimate, job.max_failures, job.suspect) == (1, 42, 5, False)


def test_many_inputs_keep_their_order_and_their_custom_ids(yard: Yard) -> None:
    names = [f"name-{n}" if n % 3 else None for n in range(700)]
    ids = yard.submit(700, custom_ids=names)
    views = {view.id: view for view in yard.store.get_jobs(ids, tenant_id=TENANT)}
    assert [views[job_id].custom_id for job_id in ids] == names
    assert [views[job_id].bulk_index for job_id in ids] == list(range(700))
    assert [job.input for job in yard.claim(ids)] == [b'{"n": %d}' % n for n in range(700)]


def test_inputs_of_all_sizes_come_back_as_they_were(yard: Yard) -> None:
    inputs = [
        b"1",
        b'"%b"' % (b"x" * 70_000),
        b"[]",
        b'"%b"' % ("é" * 40_000).encode(),
        b'"%b"' % (b"y" * 65_534),
        b"2",
    ]
    ids = yard.submit(len(inputs), inputs=inputs)
    assert [job.input for job in yard.claim(ids)] == inputs


def test_single_submissions_of_one_call_keep_their_own_values(yard: Yard) -> None:
    plain = [yard.submission(1, inputs=[b"%d" % n], costs=[n]) for n in range(40)]
    other = [yard.submission(1, priority=9), yard.submission(3, labels=["x"]), yard.submission(1, params=b"{}")]
    mixed = [*plain[:20], *other, *plain[20:]]
    answers = yard.store.submit(mixed)
    assert all(isinstance(answer, Accepted) and not answer.replayed for answer in answers)
    ids = [list(answer.ids) for answer in answers if isinstance(answer, Accepted)]
    assert [len(each) for each in ids] == [len(one.inputs) for one in mixed]
    assert len({job_id for each in ids for job_id in each}) == 45
    views = {view.id: view for view in yard.store.get_jobs([i for each in ids for i in each], tenant_id=TENANT)}
    for submission, each in zip(mixed, ids, strict=True):
        for place, job_id in enumerate(each):
            view = views[job_id]
            assert (view.priority, view.cost_estimate, view.bulk_index) == (
                submission.priority,
                submission.costs[place],
                place,
            )
            assert view.labels == tuple(submission.labels)


def test_a_known_key_answers_the_same_jobs(yard: Yard) -> None:
    submission = yard.submission(2, idempotency_key="k", idempotency_digest=b"d")
    (first,), (again,) = yard.store.submit([submission]), yard.store.submit([submission])
    assert isinstance(first, Accepted)
    assert isinstance(again, Accepted)
    assert (list(again.ids), again.created_at_ms, again.replayed) == (list(first.ids), first.created_at_ms, True)


def test_a_new_key_twice_in_one_call_makes_one_set_of_jobs(yard: Yard) -> None:
    submission = yard.submission(2, idempotency_key="k", idempotency_digest=b"d")
    first, second = yard.store.submit([submission, submission])
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert (list(second.ids), first.replayed, second.replayed) == (list(first.ids), False, True)
    assert sum(row.jobs for row in yard.store.recount()) == 2


def test_another_body_under_a_key_is_refused_and_harms_nobody(yard: Yard) -> None:
    known = yard.submission(1, idempotency_key="k", idempotency_digest=b"d")
    yard.store.submit([known])
    answers = yard.store.submit(
        [
            yard.submission(1),
            yard.submission(1, idempotency_key="k", idempotency_digest=b"other"),
            yard.submission(1, idempotency_key="new", idempotency_digest=b"1"),
            yard.submission(1, idempotency_key="new", idempotency_digest=b"2"),
        ]
    )
    kinds = [type(answer) for answer in answers]
    assert kinds == [Accepted, IdempotencyConflict, Accepted, IdempotencyConflict]
    assert sum(row.jobs for row in yard.store.recount()) == 3


def test_keys_are_apart_by_tenant_and_by_bulk(yard: Yard) -> None:
    other, bulk = yard.tenant(), yard.bulk()
    shared = {"idempotency_key": "k", "idempotency_digest": b"d"}
    answers = yard.store.submit(
        [
            yard.submission(1, **shared),
            yard.submission(1, tenant_id=other, **shared),
            yard.submission(1, bulk_id=bulk.id, **shared),
        ]
    )
    assert [isinstance(answer, Accepted) and not answer.replayed for answer in answers] == [True] * 3


def test_chunks_of_a_bulk_are_indexed_in_order(yard: Yard) -> None:
    bulk = yard.bulk()
    chunks = [yard.submission(3, bulk_id=bulk.id), yard.submission(2, bulk_id=bulk.id)]
    answers = yard.store.submit(chunks)
    ids = [job_id for answer in answers if isinstance(answer, Accepted) for job_id in answer.ids]
    ids += yard.submit(2, bulk_id=bulk.id)
    assert [yard.view(job_id).bulk_index for job_id in ids] == list(range(7))
    view = yard.bulk_view(bulk)
    assert (view.jobs, dict(view.counts)) == (7, {State.QUEUED: 7})


def test_an_unknown_a_foreign_and_a_sealed_bulk_refuse_chunks(yard: Yard) -> None:
    foreign, sealed = yard.bulk(tenant_id=yard.tenant()), yard.bulk()
    chunk = yard.submission(2, bulk_id=sealed.id, idempotency_key="c", idempotency_digest=b"d")
    (before,) = yard.store.submit([chunk])
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=sealed.id)
    unknown, other, late, again, plain = yard.store.submit(
        [
            yard.submission(1, bulk_id=77),
            yard.submission(1, bulk_id=foreign.id),
            yard.submission(1, bulk_id=sealed.id),
            chunk,
            yard.submission(1),
        ]
    )
    assert (type(unknown), type(other), type(late)) == (NotFound, NotFound, Conflict)
    assert isinstance(again, Accepted)
    assert isinstance(before, Accepted)
    assert (list(again.ids), again.replayed) == (list(before.ids), True)
    assert isinstance(plain, Accepted)


def test_ticketed_submissions_say_so_in_the_head(yard: Yard) -> None:
    (ticketed,), (other,) = yard.submit(1, ticketed=True), yard.submit(1)
    (line,) = yard.store.head(yard.queue, after={}, jobs=10, urgent_before_ms=0)
    marks = {candidate.id: candidate.ticketed_at_ms for candidate in line.candidates}
    assert marks[other] is None
    assert marks[ticketed] == yard.view(ticketed).created_at_ms


def test_usage_counts_the_bytes_of_inputs(yard: Yard) -> None:
    yard.submit(2, inputs=[b"12345", b"123"])
    (row,) = yard.store.usage()
    assert (row.tenant_id, row.queue_id, row.jobs, row.input_bytes) == (TENANT, yard.queue, 0, 8)
    assert yard.store.stored_bytes() == 8
