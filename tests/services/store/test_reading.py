"""Readers: views, waiters, listings; and that nobody reads another tenant's jobs."""

import pytest

from batchyard.jobs import ErrorInfo, Outcome, State
from batchyard.store import reading
from batchyard.store.base import JobFilter, JobPage
from batchyard.store.sql import SqlStore
from tests.services.store.yard import TENANT, Yard, eventually, failed


def test_views_of_some_jobs_leave_out_the_unknown_and_the_foreign(yard: Yard) -> None:
    other = yard.tenant()
    mine, theirs = yard.submit(2), yard.submit(1, tenant_id=other)
    assert {view.id for view in yard.store.get_jobs([*mine, *theirs, 7], tenant_id=TENANT)} == set(mine)
    assert {view.id for view in yard.store.get_jobs([*mine, *theirs, 7], tenant_id=other)} == set(theirs)
    assert yard.store.get_jobs([], tenant_id=TENANT) == []
    assert len(yard.store.get_jobs([*mine, *mine], tenant_id=TENANT)) == 2


def test_results_are_left_out_where_not_asked_for(yard: Yard) -> None:
    ids = yard.submit(2)
    yard.run(ids[:1])
    yard.finish([failed(job) for job in yard.claim(ids[1:])])
    views = {view.id: view for view in yard.store.get_jobs(ids, tenant_id=TENANT, results=False)}
    done, broken = views[ids[0]], views[ids[1]]
    assert (done.state, done.result_body, done.cost) == (State.SUCCEEDED, None, 7)
    assert broken.error is not None


def test_waiters_hear_of_terminal_and_gone_jobs(yard: Yard) -> None:
    queued, running, waiting, done, cancelled = yard.submit(5)
    yard.claim([running])
    yard.fail_for_now([waiting], retry_in_ms=600_000)
    yard.run([done])
    yard.store.cancel(cancelled, tenant_id=TENANT)
    assert set(yard.store.finished_among([queued, running, waiting, done, cancelled, 7])) == {done, cancelled, 7}
    assert yard.store.finished_among([]) == []


def test_retired_ids_are_known_to_their_tenant(yard: Yard) -> None:
    ids = yard.submit(2)
    yard.run(ids)
    yard.store.forget(ids[0], tenant_id=TENANT)
    assert yard.store.retired_among([*ids, 7], tenant_id=TENANT) == [ids[0]]
    assert yard.store.retired_among(ids, tenant_id=99) == []
    assert yard.store.retired_among([], tenant_id=TENANT) == []


def _pages(yard: Yard, **wanted: object) -> list[int]:
    """All pages of a listing, by its cursor."""
    found: list[int] = []
    before_id = None
    for _ in range(100):
        page: JobPage = yard.store.list_jobs(
            JobFilter(tenant_id=TENANT, limit=3, before_id=before_id, **wanted)  # type: ignore[arg-type]
        )
        found += [view.id for view in page.jobs]
        before_id = page.next_before_id
        if before_id is None:
            return found
    raise AssertionError("the listing does not end")


def test_listings_page_newest_first(yard: Yard) -> None:
    ids = yard.submit(8)
    yard.submit(2, tenant_id=yard.tenant())
    assert _pages(yard) == ids[::-1]
    page = yard.store.list_jobs(JobFilter(tenant_id=TENANT, limit=3))
    assert page.next_before_id == ids[-3]
    assert yard.store.list_jobs(JobFilter(tenant_id=99)) == JobPage(jobs=[], next_before_id=None)


def test_listings_by_state(yard: Yard) -> None:
    ids = yard.submit(14)
    by_state = {
        State.QUEUED: ids[0:2] + ids[12:],
        State.RUNNING: ids[2:6],
        State.WAITING: ids[6:8],
        State.SUCCEEDED: ids[8:9],
        State.FAILED: ids[9:10],
        State.CANCELLED: ids[10:12],
    }
    yard.claim(by_state[State.RUNNING])
    yard.fail_for_now(by_state[State.WAITING], retry_in_ms=600_000)
    yard.run(by_state[State.SUCCEEDED])
    yard.finish([failed(job) for job in yard.claim(by_state[State.FAILED])])
    for job_id in by_state[State.CANCELLED]:
        yard.store.cancel(job_id, tenant_id=TENANT)
    for state, wanted in by_state.items():
        assert _pages(yard, state=state) == sorted(wanted, reverse=True), state
    assert _pages(yard, state=State.EXPIRED) == []
    assert yard.store.list_jobs(JobFilter(tenant_id=99, state=State.RUNNING)).jobs == []


def test_listings_by_queue_and_label(yard: Yard) -> None:
    plain = yard.submit(2)
    marked = yard.submit(4, labels=["red", "big"])
    other = yard.submit(2, labels=["red"], queue_id=yard.tolerant)
    yard.submit(1, labels=["red"], tenant_id=yard.tenant())
    assert _pages(yard, label="red") == sorted([*marked, *other], reverse=True)
    assert _pages(yard, label="big") == marked[::-1]
    assert _pages(yard, label="red", queue_ids=[yard.tolerant]) == other[::-1]
    assert _pages(yard, queue_ids=[yard.queue]) == sorted([*plain, *marked], reverse=True)
    assert _pages(yard, queue_ids=[]) == []
    assert _pages(yard, label="none") == []
    yard.claim(marked[:1])
    assert _pages(yard, label="red", state=State.RUNNING) == marked[:1]


def _failed(yard: Yard, ids: list[int], code: str) -> None:
    error = ErrorInfo(code=code, message='a "quoted" \\ message')
    yard.finish([Outcome(job, State.FAILED, error=error) for job in yard.claim(ids)])


def test_listings_by_error(yard: Yard) -> None:
    ids = yard.submit(9, labels=["red"])
    _failed(yard, ids[:3], "broken")
    _failed(yard, ids[3:6], "timeout")
    yard.fail_for_now(ids[6:7], retry_in_ms=600_000)
    jobs = yard.claim(ids[7:8])
    yard.finish([Outcome(jobs[0], State.SUCCEEDED, body=b"\xff\x00 no text", format=1)])
    assert _pages(yard, error_code="broken") == ids[2::-1]
    assert _pages(yard, error_code="timeout", state=State.FAILED) == ids[5:2:-1]
    assert _pages(yard, error_code="timeout", label="red") == ids[5:2:-1]
    assert _pages(yard, error_code="model_busy") == ids[6:7]
    assert _pages(yard, error_code="model_busy", state=State.WAITING) == ids[6:7]
    assert _pages(yard, error_code="model_busy", state=State.FAILED) == []
    assert _pages(yard, error_code="brok") == []
    assert yard.store.list_jobs(JobFilter(tenant_id=99, error_code="broken")).jobs == []


def test_listings_by_the_time_of_the_end(yard: Yard) -> None:
    ids = yard.submit(4)
    _failed(yard, ids[:2], "broken")
    first = yard.view(ids[0]).finished_at_ms or 0
    eventually(lambda: yard.store.now_ms() > first + 5)
    _failed(yard, ids[2:3], "broken")
    second = yard.view(ids[2]).finished_at_ms or 0
    for state in (None, State.FAILED):
        assert _pages(yard, state=state, finished_from_ms=second) == ids[2:3]
        assert _pages(yard, state=state, finished_before_ms=second) == ids[1::-1]
        assert _pages(yard, state=state, finished_from_ms=first, finished_before_ms=second + 1) == ids[2::-1]
        assert _pages(yard, state=state, finished_from_ms=second + 1) == []


def test_a_closer_look_goes_past_what_does_not_fit(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE_SCAN", 4)
    ids = yard.submit(12)
    _failed(yard, ids[:1], "rare")
    _failed(yard, ids[1:], "broken")
    page = yard.store.list_jobs(JobFilter(tenant_id=TENANT, state=State.FAILED, error_code="rare", limit=3))
    assert (page.jobs, page.next_before_id) == ([], ids[-4])
    assert _pages(yard, state=State.FAILED, error_code="rare") == ids[:1]


def test_dead_jobs_are_listed_by_their_index_and_none_is_sorted(yard: Yard) -> None:
    assert isinstance(yard.store, SqlStore)
    statement = reading._rare(TENANT, State.FAILED, reading.MAX_ID).limit(5)
    with yard.store._reading() as connection:
        text = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        how = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        plan = "\n".join(map(str, connection.exec_driver_sql(f"{how} {text}")))
    assert "jobs_rare" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


def test_inputs_are_read_in_order_and_within_bounds(yard: Yard) -> None:
    other = yard.tenant()
    first, second = (
        yard.submit(1, inputs=[b"1" * 100], params=b'{"a":1}', affinity_key="k", max_cost=7),
        yard.submit(2, inputs=[b"2" * 100, b"3"], input_digests=[b"\x01", b"\x02"]),
    )
    theirs = yard.submit(1, tenant_id=other)
    asked = [second[1], *theirs, 7, *first, second[0], second[1]]
    found = yard.store.get_inputs(asked, tenant_id=TENANT, max_bytes=10_000)
    assert [(one.id, one.body) for one in found] == [
        (second[1], b"3"),
        (first[0], b"1" * 100),
        (second[0], b"2" * 100),
    ]
    assert (found[1].params, found[1].affinity_key, found[1].max_cost, found[1].digest) == (b'{"a":1}', "k", 7, None)
    assert (found[0].params, found[0].affinity_key, found[0].max_cost, found[0].digest) == (None, None, None, b"\x02")
    assert [one.id for one in yard.store.get_inputs(asked, tenant_id=TENANT, max_bytes=150)] == [second[1], first[0]]
    assert [one.id for one in yard.store.get_inputs(first, tenant_id=TENANT, max_bytes=1)] == first
    assert yard.store.get_inputs(theirs, tenant_id=TENANT, max_bytes=1000) == []
    assert yard.store.get_inputs([], tenant_id=TENANT, max_bytes=1000) == []


def test_held_jobs_are_listed_as_queued(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = yard.submit(3, bulk_id=bulk.id)
    yard.store.pause_bulk(bulk.id, tenant_id=TENANT, paused=True)
    yard.sweep()
    assert _pages(yard, state=State.QUEUED) == ids[::-1]


@pytest.mark.parametrize("state", [None, State.SUCCEEDED])
def test_a_listing_goes_past_what_does_not_fit(yard: Yard, state: State | None) -> None:
    old = yard.submit(1)
    yard.run(old)
    yard.submit(6_000, tenant_id=yard.tenant())
    assert _pages(yard, state=state) == old


def test_the_clock_does_not_stand_still(yard: Yard) -> None:
    first = yard.store.now_ms()
    eventually(lambda: yard.store.now_ms() > first)
    yard.store.ping()
    assert "memory" in yard.store.durability() or "synchronous" in yard.store.durability()


def test_nodes_are_never_given_twice(yard: Yard) -> None:
    nodes = [yard.store.take_node() for _ in range(5)]
    assert len(set(nodes)) == 5
