"""Real consumers from nothing to N and back, sized by KEDA's client over both triggers, from what is rendered."""

import ast
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from batchyard.store import migrate
from tests.services.keda import autoscaler, cluster, sources
from tests.services.keda.yard import MOST, WAIT_SECONDS, Yard
from tests.services.up import command


@pytest.fixture
def yard(tmp_path: Path, postgres_database: Callable[[], str], valkey_url: str) -> Iterator[Yard]:
    database = postgres_database()
    migrate.upgrade(database)
    with ExitStack() as closing:
        yard = Yard(tmp_path, database=database, broker=valkey_url, closing=closing)
        checking = yard.start("check", command("check"), yard.variables())
        yard.start_api()
        yard.make_pools()
        assert checking.wait(WAIT_SECONDS) == 0
        yield yard


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pools_follow_their_decisions_from_nothing_to_nothing(yard: Yard) -> None:
    scaler = yard.start_scaler()
    yard.run_keda()
    yard.until(lambda: all(one.looks > one.failed_looks + 2 for one in yard.autoscalers.values()))
    assert yard.sizes() == {"polled": 0, "pushed": 0}

    # Up, under load, until the work is known to be small; held there by hand. The stream does not wait for a look.
    yard.autoscalers["pushed"].may_look.clear()
    loads = [yard.submit(pool, 0.02, jobs=400) for pool in MOST]
    yard.until(lambda: {pool: yard.decided(pool) for pool in MOST} == MOST)
    for pool, replicas in MOST.items():
        yard.pin(pool, replicas=replicas)
    yard.lands_on(**MOST)
    yard.autoscalers["pushed"].may_look.set()
    for ids in loads:
        yard.finish(ids)
    assert [one.history[0] for one in yard.deployments.values()] == [(1, "look"), (1, "stream")]
    yard.until(lambda: sum(info.state == "ready" for info in yard.store.consumers()) == sum(MOST.values()))
    zones = {pod.zone for one in yard.deployments.values() for pod in one.pods}
    assert {info.zone for info in yard.store.consumers()} == zones

    # Under load the scaler is killed, its decisions age, half of each pool is killed, and the store goes away: nothing
    # is scaled, and no job is lost.
    before = {pool: list(changes) for pool, changes in yard.histories().items()}
    loads = [yard.submit(pool, 0.05, jobs=120) for pool in MOST]
    scaler.kill()
    scaler.wait()
    yard.let_decisions_age()
    yard.until(lambda: {pool: yard.decided(pool) for pool in MOST} == {"polled": None, "pushed": None})
    halves = [pod for one in yard.deployments.values() for pod in one.pods[: one.replicas // 2]]
    for pod in halves:
        pod.crash()
    with yard.without_the_store():
        yard.fail_looks(more_than=1)
    for pod in halves:
        pod.restart()
    for ids in loads:
        yard.finish(ids)
    yard.fail_looks(more_than=3)  # enough for KEDA's fallback
    assert yard.histories() == before

    # The next scaler decides on; of a pool that shrinks the busy consumer stays.
    yard.start_scaler()
    yard.lands_on(**MOST)
    polled = yard.deployments["polled"]
    yard.until(lambda: {pod.deletion_cost for pod in polled.pods} == {0})
    long = yard.submit("polled", 9.0, jobs=1)
    yard.until(lambda: sorted(pod.deletion_cost for pod in polled.pods) == [0, 100])
    [busy] = [pod for pod in polled.pods if pod.deletion_cost]
    yard.pin("polled", replicas=1)
    yard.lands_on(polled=1, pushed=2)
    assert polled.pods == [busy]
    [job] = yard.finish(long)
    assert job["attempt"] == 1

    # Down to nothing by themselves.
    for pool in MOST:
        yard.unpin(pool)
    yard.lands_on(polled=0, pushed=0)
    for one in yard.deployments.values():
        one.wait_for_the_gone()
        assert [(pod.process.returncode, pod.was_killed) for pod in one.gone] == [(0, False)] * len(one.gone)
        assert one.history[-1] == (0, "cool-down")


def test_the_client_knows_nothing_of_batchyard() -> None:
    for module in (autoscaler, cluster, sources):
        tree = ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        named = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        named += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in named if name.startswith("batchyard")], module.__name__
