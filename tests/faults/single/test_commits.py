"""Connections to Postgres that are cut at a commit: what was asked for is done or not, and nobody was told."""

from collections.abc import Callable, Iterator

import pytest

from batchyard.jobs import State
from batchyard.store import migrate
from batchyard.store.open import open_store
from tests.faults import servers
from tests.faults.proxy import Proxy
from tests.services.store.yard import Yard, succeeded

JOBS = 3


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Postgres]:
    with servers.postgres(tmp_path_factory.mktemp("commits")) as server:
        migrate.upgrade(server.direct)
        yield server


@pytest.fixture(scope="module")
def yard(postgres: servers.Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """Every statement was sent before, and its connection stands."""
    store = open_store(postgres.url, state_dir=tmp_path_factory.mktemp("yard"))
    made = Yard(store)
    made.run(made.submit(JOBS))
    yield made
    store.close()


def after_the_commit(between: Proxy, times: int) -> None:
    """The server's answer is lost, and that to whoever asks what became of it."""
    between.lose_answers(times)


def before_the_commit(between: Proxy, times: int) -> None:
    """The statement is lost."""
    between.lose_requests(times)


Cut = Callable[[Proxy, int], None]
cuts = pytest.mark.parametrize("cut", [after_the_commit, before_the_commit])


@cuts
def test_a_submission_is_made_once(yard: Yard, postgres: servers.Postgres, cut: Cut) -> None:
    before, lost = total(yard), postgres.proxy.lost
    cut(postgres.proxy, 1)
    ids = yard.submit(JOBS)
    assert postgres.proxy.lost == lost + 1
    assert total(yard) == before + JOBS
    assert yard.states(ids) == [State.QUEUED] * JOBS


@cuts
def test_a_claim_takes_each_job_once(yard: Yard, postgres: servers.Postgres, cut: Cut) -> None:
    ids, lost = yard.submit(JOBS), postgres.proxy.lost
    cut(postgres.proxy, 1)
    claimed = yard.claim(ids)
    assert postgres.proxy.lost == lost + 1
    assert [(job.id, job.attempt) for job in claimed] == [(job_id, 1) for job_id in ids]
    assert yard.claim(ids) == []
    assert len(yard.finish([succeeded(job) for job in claimed])) == JOBS


@cuts
def test_results_are_written_and_billed_once(yard: Yard, postgres: servers.Postgres, cut: Cut) -> None:
    ids = yard.submit(JOBS)
    outcomes = [succeeded(job) for job in yard.claim(ids)]
    before, lost = billed(yard), postgres.proxy.lost
    cut(postgres.proxy, 1)
    assert yard.finish(outcomes) == ids
    assert postgres.proxy.lost == lost + 1
    assert billed(yard) == before + JOBS
    assert yard.states(ids) == [State.SUCCEEDED] * JOBS


def total(yard: Yard) -> int:
    return sum(row.jobs for row in yard.store.recount())


def billed(yard: Yard) -> int:
    return sum(row.jobs for row in yard.store.usage())
