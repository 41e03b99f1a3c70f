"""Dead jobs redriven over every kind of store: once, whole, and within their tenant."""

import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from batchyard import redriving
from batchyard.catalog import Catalog
from batchyard.errors import (
    Conflict,
    Gone,
    InvalidInput,
    InvalidRequest,
    NotFound,
    QueueFull,
    Unavailable,
    UnknownModel,
)
from batchyard.inputs import payload_references
from batchyard.jobs import Accepted, ErrorInfo, Outcome, State, Submission, format_id, parse_id
from batchyard.redriving import Redriver, perform
from batchyard.schemas import DeadJobs, RedriveAnswer, Redriven, RedriveRequest, SubmittedJob
from batchyard.settings import QueueSettings, ServerSettings
from batchyard.store.base import JobFilter, JobInput, JobStore, ModelConfig
from batchyard.submission import Caller, Submitter
from tests.services.store.yard import TENANT, Yard, sweep, upload


class Redrives:
    """A redriver over the yard's store, committing for itself; `echo` has two versions, the second with a schema."""

    def __init__(self, yard: Yard, *, max_queued: int = 10_000) -> None:
        self.yard = yard
        self.store: JobStore = yard.store
        configs = [
            ModelConfig(model="echo", version=version, runtime="tests:Echo", weight=w) for version, w in VERSIONS
        ]
        _, self.second = yard.store.sync_models(configs)
        schema = {"type": "object", "required": ["n"]}
        yard.store.report_version(self.second.id, digest="d", input_schema=schema, cost_unit="bytes", load_seconds=1.0)
        self.catalog = Catalog(yard.store, max_queued=max_queued)
        submitter = Submitter(self.catalog, server=ServerSettings(), queues=QueueSettings())
        self.redriver = Redriver(yard.store, catalog=self.catalog, submitter=submitter)
        self.committed: list[int] = []
        """Jobs in each commit."""

    def commit(self, submissions: Sequence[Submission]) -> Sequence[Accepted | Exception]:
        self.committed.append(len(submissions))
        return self.store.submit(submissions)

    def one(self, job_id: int, *, to: str | None = None, tenant_id: int = TENANT) -> SubmittedJob:
        caller = Caller(tenant_id=tenant_id, created_by="by_me")
        return perform(self.redriver.one(job_id, to=to, caller=caller), self.commit)

    def some(self, *, tenant_id: int = TENANT, **request: Any) -> RedriveAnswer:
        asked = RedriveRequest(**request)
        return perform(self.redriver.some(asked, caller=Caller(tenant_id=tenant_id)), self.commit)

    def by_ids(self, ids: Sequence[int], **request: Any) -> list[Redriven]:
        return self.some(ids=list(map(format_id, ids)), **request).jobs


VERSIONS = [("1", 1.0), ("2", 0.0)]


@pytest.fixture
def redrives(yard: Yard) -> Redrives:
    return Redrives(yard)


def kill(yard: Yard, ids: Sequence[int], *, code: str = "broken") -> list[int]:
    jobs = yard.claim(ids)
    assert len(jobs) == len(ids)
    yard.finish([Outcome(job, State.FAILED, error=ErrorInfo(code=code, message="it broke")) for job in jobs])
    return list(ids)


def successor(answer: Redriven) -> int:
    number = parse_id(answer.redriven_as or "")
    assert number is not None, answer
    return number


def test_a_dead_job_comes_back_as_it_was_submitted(redrives: Redrives) -> None:
    yard = redrives.yard
    asked = yard.store.now_ms()
    [old] = yard.submit(
        1,
        inputs=[b'{"n":"\xc3\xa4"}'],
        priority=8,
        max_failures=2,
        params=b'{"p":1}',
        labels=["red", "big"],
        custom_ids=["mine"],
        created_by="by_another",
        affinity_key="k",
        max_cost=99,
        input_digests=[b"\x07"],
        deadline_ms=asked + 600_000,
    )
    kill(yard, [old])
    made = redrives.one(old)
    new = parse_id(made.id) or 0
    assert (made.model, made.lane, made.state, made.replayed) == ("echo@1", "firm", "queued", False)
    before, after = yard.view(old), yard.view(new)
    assert (before.redriven_as, before.redrive_of, after.redriven_as, after.redrive_of) == (new, None, None, old)
    assert (before.state, after.state) == (State.FAILED, State.QUEUED)
    assert (after.priority, after.max_failures, after.labels, after.custom_id) == (8, 2, ("red", "big"), "mine")
    assert (after.failures, after.attempt, after.bulk_id) == (0, 0, None)
    assert after.deadline_ms is not None
    given = after.deadline_ms - after.created_at_ms
    assert abs(given - ((before.deadline_ms or 0) - before.created_at_ms)) < 5_000
    [was], [now] = (yard.store.get_inputs([number], tenant_id=TENANT, max_bytes=1000) for number in (old, new))
    assert msgspec.structs.replace(was, id=new) == now
    assert yard.run([new]) == [new]
    assert yard.view(old).redriven_as == new


def test_a_job_is_redriven_once_and_then_its_successor_may_be(redrives: Redrives) -> None:
    yard = redrives.yard
    [old] = kill(yard, yard.submit(1))
    first = redrives.one(old)
    new = parse_id(first.id) or 0
    yard.claim([new])
    again = redrives.one(old)
    assert (again.id, again.replayed, again.state) == (first.id, True, "running")
    [listed] = redrives.by_ids([old])
    assert (listed.already, successor(listed), listed.refused) == (True, new, None)
    with pytest.raises(Conflict, match="running"):
        redrives.one(new)
    yard.store.deregister(yard.owner)
    yard.owner = yard.consumer()
    kill(yard, [new])
    third = redrives.one(new)
    assert yard.view(new).redriven_as == parse_id(third.id)
    assert yard.view(old).redriven_as == new


def test_two_at_the_same_moment_make_one_job(redrives: Redrives) -> None:
    yard = redrives.yard
    [old] = kill(yard, yard.submit(1))
    both_looked = threading.Barrier(2)
    answers: list[SubmittedJob] = []

    def commit(submissions: Sequence[Submission]) -> Sequence[Accepted | Exception]:
        both_looked.wait(20)
        return yard.store.submit(submissions)

    def run() -> None:
        answers.append(perform(redrives.redriver.one(old, to=None, caller=Caller(tenant_id=TENANT)), commit))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False, True]
    assert len(yard.store.list_jobs(JobFilter(tenant_id=TENANT)).jobs) == 2


def test_another_version_takes_it_where_it_fits(redrives: Redrives) -> None:
    yard = redrives.yard
    fits, misfit = yard.submit(2, inputs=[b'{"n":1}', b'"text"'], queue_id=yard.tolerant)
    kill_tolerant(yard, [fits, misfit])
    made = redrives.one(fits, to="echo@2")
    assert (made.model, made.lane) == ("echo@2", "tolerant")
    with pytest.raises(InvalidInput):
        redrives.one(misfit, to="echo@2")
    with pytest.raises(UnknownModel):
        redrives.one(misfit, to="echo@3")
    with pytest.raises(UnknownModel):
        redrives.some(ids=[format_id(misfit)], to="echo@3")
    assert yard.view(misfit).redriven_as is None
    # Its own version has no schema, so it goes there; and then not elsewhere.
    assert redrives.one(misfit).model == "echo@1"
    assert redrives.one(misfit, to="echo").replayed
    with pytest.raises(Conflict, match="redriven before"):
        redrives.one(misfit, to="echo@2")
    [refused] = redrives.by_ids([misfit], to="echo@2")
    assert refused.refused is not None
    assert (refused.refused.code, refused.already, refused.model) == ("conflict", True, "echo@1")


def kill_tolerant(yard: Yard, ids: Sequence[int]) -> None:
    jobs = yard.claim(ids, queue=yard.tolerant)
    yard.finish([Outcome(job, State.FAILED, error=ErrorInfo(code="broken", message="it broke")) for job in jobs])


def test_a_version_that_is_no_longer_configured_needs_another(redrives: Redrives) -> None:
    yard = redrives.yard
    [old] = kill(yard, yard.submit(1))
    yard.store.sync_models([ModelConfig(model="echo", version="2", runtime="tests:Echo")])
    redrives.catalog.refresh()
    with pytest.raises(UnknownModel, match="no longer configured"):
        redrives.one(old)
    assert redrives.one(old, to="echo@2").model == "echo@2"


def test_only_the_dead_are_redriven(redrives: Redrives) -> None:
    yard = redrives.yard
    past = yard.store.now_ms() - 5
    queued, running, done, cancelled = yard.submit(4)
    [expired] = yard.submit(1, deadline_ms=past)
    yard.claim([running])
    yard.run([done])
    yard.store.cancel(cancelled, tenant_id=TENANT)
    yard.store.expire_due(limit=10)
    [retired] = kill(yard, yard.submit(1))
    yard.store.forget(retired, tenant_id=TENANT)
    for job_id, error in ((queued, Conflict), (running, Conflict), (done, Conflict), (retired, Gone), (7, NotFound)):
        with pytest.raises(error):
            redrives.one(job_id)
    asked = [format_id(each) for each in (queued, cancelled, retired, 7, expired, done, cancelled)]
    answer = redrives.some(ids=[*asked, "no id"])
    told = {each.id: each.refused.code if each.refused else "made" for each in answer.jobs}
    assert told == dict(
        zip(
            [*asked[:6], "no id"],
            ["conflict", "made", "gone", "not_found", "made", "conflict", "not_found"],
            strict=True,
        )
    )
    assert [each.id for each in answer.jobs] == [*asked[:6], "no id"]
    assert (answer.count, answer.next) == (2, None)
    assert yard.view(expired).redriven_as is not None
    assert yard.view(queued).redriven_as is None


def test_what_a_job_refers_to_lives_on_with_its_successor(redrives: Redrives) -> None:
    yard = redrives.yard
    payload = upload(yard.store)
    body = msgspec.json.encode({"n": {"$payload": format_id(payload)}})
    references = payload_references([msgspec.json.decode(body)], place=lambda _: "/input")
    [old] = kill(yard, yard.submit(1, inputs=[body], payloads=references))
    new = parse_id(redrives.one(old).id) or 0
    yard.store.forget(old, tenant_id=TENANT)
    sweep(yard.store)
    assert [info.id for info in yard.store.get_payloads([payload])] == [payload]
    yard.run([new])
    yard.store.forget(new, tenant_id=TENANT)
    assert yard.store.get_payloads([payload]) == []


def test_one_that_is_deleted_meanwhile_is_gone(redrives: Redrives) -> None:
    yard = redrives.yard
    ids = kill(yard, yard.submit(3))
    get_inputs, going = yard.store.get_inputs, [ids[0], ids[2]]

    def meanwhile(ids: Sequence[int], *, tenant_id: int, max_bytes: int) -> list[JobInput]:
        while going:
            yard.store.forget(going.pop(), tenant_id=TENANT)
        return get_inputs(ids, tenant_id=tenant_id, max_bytes=max_bytes)

    yard.store.get_inputs = meanwhile  # type: ignore[method-assign]
    answers = redrives.by_ids(ids)
    assert [each.refused and each.refused.code for each in answers] == ["gone", None, "gone"]


def test_a_filter_is_gone_through_in_steps_that_may_be_repeated(redrives: Redrives) -> None:
    yard = redrives.yard
    tenant = yard.tenant()
    broken, slow = kill(yard, yard.submit(5, labels=["red"])), kill(yard, yard.submit(3), code="timeout")
    theirs = yard.submit(2, tenant_id=tenant)
    kill(yard, theirs)
    yard.store.cancel(yard.submit(1)[0], tenant_id=TENANT)
    where = DeadJobs(error="broken", model="echo")
    foreseen = redrives.some(where=where, dry_run=True, limit=1000)
    assert (foreseen.count, redrives.committed) == (5, [])
    assert [each.id for each in foreseen.jobs] == [format_id(job_id) for job_id in broken[::-1]]
    assert {each.died_of.code for each in foreseen.jobs if each.died_of} == {"broken"}
    assert {each.redriven_as for each in foreseen.jobs} == {None}
    seen: list[int] = []
    after = None
    while True:
        step = redrives.some(where=where, limit=2, after=after)
        repeated = redrives.some(where=where, limit=2, after=after)
        assert [each.redriven_as for each in step.jobs] == [each.redriven_as for each in repeated.jobs]
        assert (repeated.count, step.next) == (0, repeated.next)
        seen += [parse_id(each.id) or 0 for each in step.jobs]
        after = step.next
        if after is None:
            break
    assert seen == broken[::-1]
    assert {yard.view(job_id).redriven_as for job_id in slow} == {None}
    assert {yard.view(job_id, tenant_id=tenant).redriven_as for job_id in theirs} == {None}
    assert redrives.some(where=DeadJobs(label="red"), dry_run=True).count == 0
    assert redrives.some(where=DeadJobs(state="cancelled"), dry_run=True).count == 1
    assert redrives.some(where=DeadJobs(model="echo@2")).jobs == []
    with pytest.raises(UnknownModel):
        redrives.some(where=DeadJobs(model="nothing"))


def test_successors_stand_in_the_order_of_the_old(redrives: Redrives) -> None:
    ids = kill(redrives.yard, redrives.yard.submit(4))
    made = [successor(each) for each in redrives.by_ids(ids[::-1])]
    assert made == sorted(made, reverse=True)


def test_inputs_are_in_memory_a_piece_at_a_time(redrives: Redrives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redriving, "PIECE_BYTES", 250)
    yard = redrives.yard
    ids = kill(yard, yard.submit(5, inputs=[b'"%s"' % (b"x" * 98)] * 5))
    assert len({each.redriven_as for each in redrives.by_ids(ids)} - {None}) == 5
    assert redrives.committed == [2, 2, 1]


def test_a_full_queue_takes_what_it_has_room_for(yard: Yard) -> None:
    ids = kill(yard, yard.submit(5))
    redrives = Redrives(yard, max_queued=3)
    with pytest.raises(QueueFull) as full:
        redrives.by_ids(ids)
    assert full.value.retry_after_seconds
    assert [yard.view(job_id).redriven_as is not None for job_id in ids] == [True] * 3 + [False] * 2
    made = [view.redriven_as or 0 for view in map(yard.view, ids[:3])]
    yard.run(made)
    redrives.catalog.refresh()
    assert [each.already for each in redrives.by_ids(ids)] == [True] * 3 + [False] * 2


def test_an_outage_is_told_and_the_call_may_be_repeated(redrives: Redrives) -> None:
    ids = kill(redrives.yard, redrives.yard.submit(2))
    steps = redrives.redriver.some(RedriveRequest(ids=list(map(format_id, ids))), caller=Caller(tenant_id=TENANT))
    with pytest.raises(Unavailable):
        perform(steps, lambda submissions: [Unavailable("away")] * len(submissions))
    assert [each.already for each in redrives.by_ids(ids)] == [False, False]


def test_another_tenants_jobs_are_not_there(redrives: Redrives) -> None:
    yard = redrives.yard
    tenant = yard.tenant()
    [theirs] = kill(yard, yard.submit(1, tenant_id=tenant, labels=["red"]))
    with pytest.raises(NotFound):
        redrives.one(theirs)
    [told] = redrives.by_ids([theirs])
    assert told == Redriven(id=format_id(theirs), refused=told.refused)
    assert told.refused is not None
    assert told.refused.code == "not_found"
    for dry_run in (True, False):
        assert redrives.some(where=DeadJobs(label="red"), dry_run=dry_run).jobs == []
    assert yard.view(theirs, tenant_id=tenant).redriven_as is None
    # Nor does it matter to theirs that a key of the same name exists here.
    redrives.one(theirs, tenant_id=tenant)
    assert yard.view(theirs, tenant_id=tenant).redriven_as is not None


def test_a_successor_that_was_deleted_is_not_made_again(redrives: Redrives) -> None:
    yard = redrives.yard
    [old] = kill(yard, yard.submit(1))
    new = parse_id(redrives.one(old).id) or 0
    yard.run([new])
    yard.store.forget(new, tenant_id=TENANT)
    with pytest.raises(Gone, match=format_id(new)):
        redrives.one(old)
    assert yard.view(old).redriven_as == new


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"ids": ["0" * 16], "where": DeadJobs()},
        {"ids": ["0" * 16], "after": "0" * 16},
        {"where": DeadJobs(), "after": "x"},
    ],
)
def test_requests_that_make_no_sense_are_refused(redrives: Redrives, request_: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        redrives.some(**request_)
