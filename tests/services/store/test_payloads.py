"""Payloads live as long as jobs that refer to them; what nobody needs is a leftover until its bytes are gone."""

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from batchyard.errors import Conflict, InvalidInput, NotFound, Unavailable
from batchyard.jobs import Accepted
from batchyard.store import payloads
from batchyard.store.base import JobStore, Leftover, PayloadInfo
from batchyard.store.postgres import PostgresStore
from batchyard.store.sqlite import SqliteStore
from tests.services.store.yard import NEVER, TENANT, Yard, eventually, naming, several_stores, sweep, upload, uploaded


def swept(store: JobStore) -> set[int]:
    return {leftover.id for leftover in sweep(store)}


def known(store: JobStore, *numbers: int) -> set[int]:
    return {payload.id for payload in store.get_payloads(numbers)}


def retire_all(yard: Yard) -> None:
    before = yard.store.now_ms() + 1
    eventually(lambda: yard.store.now_ms() > before)
    for _ in range(5):
        yard.store.retire(finished_before_ms=before, limit=1000, tombstone_ms=1 << 40)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are over at once, and what is not deleted is tried again at once."""
    monkeypatch.setattr(payloads, "UPLOAD_MS", -1)
    monkeypatch.setattr(payloads, "RETRY_MS", -1)


# --- as such ----------------------------------------------------------------------------------------------------------


def test_payloads_are_found_by_their_ids(store: JobStore) -> None:
    made = [
        PayloadInfo(id=n, tenant_id=1, content_type="image/png", size=n, digest=b"\xff", location=f"a/{n}")
        for n in (5, 1 << 62)
    ]
    for payload in made:
        store.expect_payload(payload.id, location=payload.location)
        store.add_payload(payload)
    found = store.get_payloads([5, 1 << 62, 7])
    assert sorted(found, key=lambda payload: payload.id) == made
    assert store.get_payloads([]) == []


def test_what_nobody_refers_to_is_given_up_after_its_time(store: JobStore) -> None:
    number = upload(store)
    assert sweep(store, before_ms=store.now_ms() - 60_000) == []
    assert known(store, number) == {number}
    (leftover,) = sweep(store, before_ms=store.now_ms() + 1)
    assert leftover == Leftover(id=number, location=f"{TENANT}/{number:x}")
    assert known(store, number) == set()


def test_leftovers_come_again_until_they_are_said_to_be_deleted(store: JobStore, monkeypatch: Any) -> None:
    number = upload(store)
    assert swept(store) == {number}
    assert swept(store) == set(), "whoever has it gets some time"
    monkeypatch.setattr(payloads, "RETRY_MS", -1)
    other = upload(store)
    assert swept(store) == {other}
    assert swept(store) == {other}, "its bytes were not deleted, perhaps because nobody lived to do it"
    assert sweep(store, deleted=[other, number]) == []
    assert swept(store) == set()


@pytest.mark.usefixtures("no_patience")
def test_an_upload_that_breaks_off_leaves_a_leftover(store: JobStore) -> None:
    store.expect_payload(5, location="1/five")
    assert sweep(store) == [Leftover(id=5, location="1/five")]
    late = PayloadInfo(id=5, tenant_id=TENANT, content_type="x", size=1, digest=b"", location="1/five")
    with pytest.raises(Unavailable, match="send it again"):
        store.add_payload(late)
    assert sweep(store, deleted=[5]) == []
    with pytest.raises(Unavailable):
        store.add_payload(late)
    assert known(store, 5) == set()


def test_an_upload_under_way_is_left_alone(store: JobStore) -> None:
    store.expect_payload(5, location="1/five")
    assert sweep(store) == []
    info = PayloadInfo(id=5, tenant_id=TENANT, content_type="x", size=1, digest=b"", location="1/five")
    store.add_payload(info)
    assert known(store, 5) == {5}


@pytest.mark.usefixtures("no_patience")
def test_a_finished_upload_is_no_leftover(store: JobStore) -> None:
    upload(store)
    assert sweep(store, before_ms=NEVER) == []


def test_steps_are_bounded(store: JobStore) -> None:
    numbers = {upload(store) for _ in range(7)}
    found: set[int] = set()
    for expected in (3, 3, 1, 0):
        step = sweep(store, limit=3)
        assert len(step) == expected
        found |= {leftover.id for leftover in step}
    assert found == numbers


# --- and jobs ---------------------------------------------------------------------------------------------------------


def test_a_payload_lives_as_long_as_a_job_refers_to_it(yard: Yard) -> None:
    shared, own, spare = (upload(yard.store) for _ in range(3))
    first, second = yard.submit(2, payloads=naming([shared], [shared, own]))
    (third,) = yard.submit(1, payloads=naming([shared]))
    assert swept(yard.store) == {spare}
    yard.run([first])
    retire_all(yard)
    assert swept(yard.store) == set()
    yard.run([second])
    assert swept(yard.store) == set()
    retire_all(yard)
    assert swept(yard.store) == {own}
    yard.store.cancel(third, tenant_id=TENANT)
    assert swept(yard.store) == set()
    retire_all(yard)
    assert known(yard.store, shared) == {shared}, "until the next sweep"
    assert swept(yard.store) == {shared}
    assert known(yard.store, shared, own, spare) == set()


def test_a_young_payload_outlives_retired_jobs(yard: Yard) -> None:
    number = upload(yard.store)
    yard.run(yard.submit(1, payloads=naming([number])))
    retire_all(yard)
    assert sweep(yard.store, before_ms=yard.store.now_ms() - 60_000) == []
    yard.submit(1, payloads=naming([number]))
    assert swept(yard.store) == set()


def test_a_forgotten_job_takes_its_payloads_along(yard: Yard) -> None:
    shared, own = upload(yard.store), upload(yard.store)
    first, second = yard.submit(2, payloads=naming([shared, own], [shared]))
    yard.run([first, second])
    yard.store.forget(first, tenant_id=TENANT)
    assert known(yard.store, shared, own) == {shared}
    yard.store.forget(second, tenant_id=TENANT)
    assert known(yard.store, shared) == set()
    assert {leftover.id for leftover in sweep(yard.store, before_ms=NEVER)} == {shared, own}


def test_a_payload_that_is_not_there_or_not_the_tenants_is_refused_alone(yard: Yard) -> None:
    own, foreign = upload(yard.store), upload(yard.store, tenant_id=yard.tenant())
    answers = yard.store.submit(
        [
            yard.submission(2, payloads=naming([own], [own])),
            yard.submission(2, payloads=naming([own], [own, foreign])),
            yard.submission(1),
            yard.submission(1, payloads=naming([4711])),
        ]
    )
    assert [isinstance(answer, Accepted) for answer in answers] == [True, False, True, False]
    refused = answers[1]
    assert isinstance(refused, InvalidInput)
    assert refused.details == {"pointer": "/inputs/1", "index": 1}
    assert f"{foreign:016x}" in refused.message
    assert sum(row.jobs for row in yard.store.recount()) == 3
    assert swept(yard.store) == {foreign}


def test_what_was_given_up_is_refused(yard: Yard) -> None:
    number = upload(yard.store)
    sweep(yard.store)
    assert isinstance(yard.store.submit([yard.submission(1, payloads=naming([number]))])[0], InvalidInput)


def test_a_replay_is_answered_though_its_payload_is_gone(yard: Yard) -> None:
    number = upload(yard.store)
    call = yard.submission(2, payloads=naming([number], [number]), idempotency_key="k", idempotency_digest=b"d")
    (first,) = yard.store.submit([call])
    assert isinstance(first, Accepted)
    yard.run(first.ids)
    for job_id in first.ids:
        yard.store.forget(job_id, tenant_id=TENANT)
    (again,) = yard.store.submit([call])
    assert isinstance(again, Accepted)
    assert (list(again.ids), again.replayed) == (list(first.ids), True)


def test_twice_the_same_call_refers_once(yard: Yard) -> None:
    number = upload(yard.store)
    call = yard.submission(1, payloads=naming([number]), idempotency_key="k", idempotency_digest=b"d")
    first, second = yard.store.submit([call, call])
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert second.replayed
    yard.run(first.ids)
    yard.store.forget(first.ids[0], tenant_id=TENANT)
    assert known(yard.store, number) == set()


def test_chunks_of_a_bulk_refer_too(yard: Yard) -> None:
    bulk = yard.bulk()
    number = upload(yard.store)
    ids = [*yard.submit(2, bulk_id=bulk.id, payloads=naming([], [number])), *yard.submit(1, bulk_id=bulk.id)]
    closed = yard.bulk()
    yard.store.seal_bulk(tenant_id=TENANT, bulk_id=closed.id)
    lacking = yard.submission(1, bulk_id=bulk.id, payloads=naming([4711]))
    sealed = yard.submission(1, bulk_id=closed.id, payloads=naming([number]))
    nowhere = yard.submission(1, bulk_id=4711, payloads=naming([number]))
    kinds = [type(answer) for answer in yard.store.submit([lacking, sealed, nowhere])]
    assert kinds == [InvalidInput, Conflict, NotFound]
    assert yard.bulk_view(bulk).jobs == 3
    yard.run(ids)
    retire_all(yard)
    assert swept(yard.store) == {number}


def test_many_jobs_put_together_keep_their_own_references(yard: Yard) -> None:
    numbers = [upload(yard.store) for _ in range(40)]
    answers = yard.store.submit(
        [yard.submission(1, payloads=naming([number]) if place % 2 else []) for place, number in enumerate(numbers)]
    )
    ids = [answer.ids[0] for answer in answers if isinstance(answer, Accepted)]
    assert len(ids) == 40
    assert swept(yard.store) == set(numbers[::2])
    yard.run(ids)
    for job_id, number in zip(ids[1::2], numbers[1::2], strict=True):
        yard.store.forget(job_id, tenant_id=TENANT)
        assert known(yard.store, *numbers).isdisjoint({number})


def test_stored_bytes_count_a_payload_once_while_a_job_refers_to_it(yard: Yard) -> None:
    yard.submit(1, inputs=[b"12345"])
    big, small, unused = (upload(yard.store, size=size) for size in (10_000, 2_000, 700_000))
    assert yard.store.stored_bytes() == 5
    assert yard.store.stored_bytes_by_tenant() == {TENANT: 5 + 712_000}, (
        "those that no job refers to are a tenant's too"
    )
    ids = yard.submit(3, payloads=naming([big], [big, small], []))
    inline = 5 + 3 * len(b'{"n": 0}')
    assert yard.store.stored_bytes() == inline + 12_000
    ids += yard.submit(1, payloads=naming([big]))
    yard.store.submit([yard.submission(1, payloads=naming([small, 4711]))])
    assert yard.store.stored_bytes() == inline + 12_000 + 8
    for job_id in ids:
        yard.store.cancel(job_id, tenant_id=TENANT)
    yard.store.forget(ids[1], tenant_id=TENANT)
    assert yard.store.stored_bytes() == inline + 10_000
    retire_all(yard)
    assert yard.store.stored_bytes() == 5
    yard.submit(1, inputs=[b"1"], payloads=naming([big]))
    assert yard.store.stored_bytes() == 6 + 10_000, "it is used once more, having been young"
    assert swept(yard.store) == {small, unused}
    assert yard.store.stored_bytes() == 6 + 10_000
    assert yard.store.stored_bytes_by_tenant() == {TENANT: 6 + 10_000}


# --- what it costs others ---------------------------------------------------------------------------------------------


@pytest.fixture
def statements(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Those that the hot paths run."""
    seen: list[str] = []
    if isinstance(store, PostgresStore):
        execute = PostgresStore._execute

        def watched(self: PostgresStore, statement: Any, arguments: Any) -> Any:
            seen.append(statement.text.decode())
            return execute(self, statement, arguments)

        monkeypatch.setattr(PostgresStore, "_execute", watched)
        yield seen
    else:
        assert isinstance(store, SqliteStore)
        with store._file.writing() as handle:
            raw = handle.raw
        raw.set_trace_callback(seen.append)
        yield seen
        raw.set_trace_callback(None)


def test_jobs_without_payloads_are_asked_nothing_about_them(yard: Yard, statements: list[str]) -> None:
    bulk = yard.bulk()
    statements.clear()
    ids = [*yard.submit(3, labels=["x"], idempotency_key="k"), *yard.submit(2, bulk_id=bulk.id), *yard.submit(1)]
    yard.run(ids)
    assert statements
    assert [text for text in statements if "payload" in text] == []
    yard.submit(1, payloads=naming([upload(yard.store)]))
    assert [text for text in statements if "payload" in text] != []


# --- at the same time -------------------------------------------------------------------------------------------------


@several_stores
def test_no_accepted_job_ever_lacks_its_payload(yard: Yard, open_another: Callable[[], JobStore]) -> None:
    """Submitters that name the same payloads, and forget their jobs; two who retire and sweep without any grace."""
    enough = 15
    shared: dict[int, int] = {}
    uploading = threading.Lock()
    done = threading.Event()

    def shared_in(turn: int, store: JobStore) -> int:
        with uploading:
            if turn not in shared:
                shared[turn] = upload(store)
            return shared[turn]

    def lacking(store: JobStore) -> list[int]:
        """What was missing for any of so many jobs that were accepted."""
        accepted, missed = 0, []
        for turn in itertools.count():
            if accepted == enough:
                break
            wanted = {upload(store), shared_in(turn, store)}
            (answer,) = store.submit([yard.submission(2, payloads=naming(sorted(wanted), [shared[turn]]))])
            if isinstance(answer, Accepted):
                accepted += 1
                missed += sorted(wanted - known(store, *wanted))
                for job_id in answer.ids:
                    store.cancel(job_id, tenant_id=TENANT)
                with suppress(NotFound):
                    store.forget(answer.ids[turn % 2], tenant_id=TENANT)
            else:
                assert isinstance(answer, InvalidInput), answer
        return missed

    def chores(store: JobStore) -> None:
        while not done.is_set():
            store.retire(finished_before_ms=store.now_ms(), limit=20, tombstone_ms=1 << 40)
            sweep(store, deleted=[leftover.id for leftover in sweep(store)], before_ms=NEVER)
            done.wait(0.003)

    with ThreadPoolExecutor(5) as threads:
        cleaning = [threads.submit(chores, open_another()) for _ in range(2)]
        submitting = [threads.submit(lacking, open_another()) for _ in range(3)]
        try:
            assert [each.result() for each in submitting] == [[], [], []]
        finally:
            done.set()
        for each in cleaning:
            each.result()
    retire_all(yard)
    sweep(yard.store, limit=10_000)
    assert yard.store.recount() == []
    assert yard.store.stored_bytes() == 0
    assert known(yard.store, *uploaded()) == set(), "nothing is held by jobs that are gone"
