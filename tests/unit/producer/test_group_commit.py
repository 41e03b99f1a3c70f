import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from batchyard.errors import Conflict, ServerError, Unavailable
from batchyard.jobs import Accepted, Submission
from batchyard_producer.group_commit import AfterCommit, GroupCommit, Outcome

pytestmark = pytest.mark.anyio


def submission(text: bytes = b"1", *, jobs: int = 1) -> Submission:
    return Submission(tenant_id=1, queue_id=1, inputs=[text] * jobs, costs=[1] * jobs)


class Store:
    """Records what was committed together. `gate` holds commits back; `judge` decides what a commit does."""

    def __init__(self, judge: Callable[[Submission], Outcome | None] | None = None) -> None:
        self.groups: list[list[Submission]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.judge = judge

    def submit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        self.entered.set()
        assert self.gate.wait(10)
        self.groups.append(list(submissions))
        return [
            (self.judge(one) if self.judge else None) or Accepted(ids=range(1, 2), created_at_ms=0)
            for one in submissions
        ]


async def started(store: Store, after_commit: AfterCommit | None = None, **limits: int) -> GroupCommit:
    commit = GroupCommit(store, after_commit=after_commit, **limits)
    commit.start(asyncio.get_running_loop())
    return commit


async def closed(commit: GroupCommit) -> None:
    await asyncio.to_thread(commit.close)


async def test_what_gathers_during_a_commit_goes_into_the_next() -> None:
    store = Store()
    store.gate.clear()
    commit = await started(store)
    first = commit.submit(submission())
    assert await asyncio.to_thread(store.entered.wait, 10)
    others = [commit.submit(submission()) for _ in range(50)]
    store.gate.set()
    await asyncio.gather(first, *others)
    assert [len(group) for group in store.groups] == [1, 50]
    await closed(commit)


async def test_a_member_that_is_refused_does_not_harm_the_others() -> None:
    def judge(one: Submission) -> Outcome | None:
        return Conflict("sealed") if one.inputs[0] == b"bad" else None

    store = Store(judge)
    commit = await started(store)
    outcomes = await asyncio.gather(
        *(commit.submit(submission(text)) for text in (b"1", b"bad", b"2")), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [Accepted, Conflict, Accepted]
    await closed(commit)


async def test_a_fault_of_the_whole_group_fails_its_cause_alone() -> None:
    def judge(one: Submission) -> Outcome | None:
        if one.inputs[0] == b"bad":
            raise ValueError("the driver did not like it")
        return None

    store = Store(judge)
    store.gate.clear()
    commit = await started(store)
    first = commit.submit(submission())
    assert await asyncio.to_thread(store.entered.wait, 10)
    futures = [commit.submit(submission(text)) for text in (b"1", b"bad", b"2")]
    store.gate.set()
    outcomes = await asyncio.gather(first, *futures, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Accepted, Accepted, ServerError, Accepted]
    assert "driver" not in str(outcomes[2])
    await closed(commit)


async def test_without_a_database_everybody_hears_so_at_once() -> None:
    def judge(one: Submission) -> Outcome | None:
        raise Unavailable("the database is away")

    store = Store(judge)
    commit = await started(store)
    outcomes = await asyncio.gather(*(commit.submit(submission()) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    assert {outcome.retry_after_seconds for outcome in outcomes if isinstance(outcome, Unavailable)} == {1}
    await closed(commit)


async def test_what_waits_is_bounded() -> None:
    store = Store()
    store.gate.clear()
    commit = await started(store, max_waiting_jobs=10)
    big = commit.submit(submission(jobs=100))  # alone it may be as large as it wants
    with pytest.raises(Unavailable, match="wait for the database"):
        commit.submit(submission())
    store.gate.set()
    await big
    await commit.submit(submission())
    await closed(commit)


async def test_a_caller_that_left_is_passed_over_and_its_jobs_stand() -> None:
    store = Store()
    store.gate.clear()
    commit = await started(store)
    future = commit.submit(submission())
    future.cancel()
    store.gate.set()
    await commit.submit(submission())
    assert sum(map(len, store.groups)) == 2
    await closed(commit)


async def test_closing_commits_what_was_handed_in() -> None:
    store = Store()
    store.gate.clear()
    commit = await started(store)
    futures = [commit.submit(submission()) for _ in range(5)]
    closing = asyncio.ensure_future(closed(commit))
    store.gate.set()
    await asyncio.gather(closing, *futures)
    with pytest.raises(Unavailable, match="shutting down"):
        commit.submit(submission())


async def test_the_writer_outlives_what_follows_a_commit() -> None:
    seen: list[int] = []

    def after(submissions: Sequence[Submission], outcomes: Sequence[Outcome], seconds: float) -> None:
        seen.append(len(submissions))
        raise RuntimeError("the broker's client has a bug")

    commit = await started(Store(), after)
    await commit.submit(submission())
    await commit.submit(submission())
    await closed(commit)
    assert seen == [1, 1]
