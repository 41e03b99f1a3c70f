"""Jobs join and leave a continuous model between its steps."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from batchyard.errors import RetryableModelError
from batchyard.jobs import Lane, State
from batchyard.model import ContinuousModel
from batchyard_consumers.samples import NoOp
from tests.unit.consumers.line import Line, until, value_of


class Counting(ContinuousModel):
    """Counts each input down, one a step, and answers how many were inside at the most meanwhile.

    `{"steps": 3}`; also `fail` (an exception at the end), `refuse` (in `join`), `crash` (the step raises while it is
    inside), `forever`.
    """

    def __init__(self, most_jobs: int = 4, gate: threading.Semaphore | None = None) -> None:
        self.most_jobs = most_jobs
        self.gate = gate
        self.inside: dict[int, dict[str, Any]] = {}
        self.seen: list[int] = []
        """How many were inside at each step."""
        self.left: list[int] = []

    def cost(self, item: Any) -> int:
        return int(item.get("done", item["steps"]))

    def join(self, key: int, item: Any) -> None:
        if item.get("refuse"):
            raise ValueError("refused")
        self.inside[key] = {**item, "most": 0, "item": item}

    def step(self) -> Sequence[tuple[int, Any]]:
        if self.gate is not None:
            self.gate.acquire(timeout=0.1)
        self.seen.append(len(self.inside))
        if any(state.get("crash") for state in self.inside.values()):
            raise RuntimeError("a step failed")
        for state in self.inside.values():
            state["steps"] -= 0 if state.get("forever") else 1
            state["most"] = max(state["most"], len(self.inside))
        ended = [key for key, state in self.inside.items() if state["steps"] <= 0]
        return [(key, self._output(self.inside.pop(key))) for key in ended]

    def leave(self, key: int) -> None:
        self.left.append(key)
        self.inside.pop(key, None)

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        return [{"most": output} for output in outputs]

    def _output(self, state: dict[str, Any]) -> Any:
        state["item"]["done"] = 7
        if state.get("fail"):
            return ValueError("as asked")
        return state["most"]


def test_jobs_join_and_leave_between_steps() -> None:
    model = Counting(most_jobs=4)
    with Line({"m": model}) as line:
        views = line.finish(line.submit("m", [{"steps": 1 + n % 5} for n in range(50)]))
    assert [view.state for view in views] == [State.SUCCEEDED] * 50
    assert max(model.seen) == 4
    # It was kept full: 150 steps of work in at most a little more than a quarter of that.
    assert len(model.seen) < 60
    assert {view.cost for view in views} == {7}
    assert all(view.device_us is not None for view in views)


def test_a_new_job_does_not_wait_for_those_inside() -> None:
    model = Counting(most_jobs=4)
    with Line({"m": model}) as line:
        slow = line.submit("m", [{"steps": 10**9, "forever": True}])
        until(lambda: model.inside)
        quick = line.finish(line.submit("m", [{"steps": 1}]))
        assert value_of(quick[0]) == {"most": 2}
        line.pipeline.cancel(frozenset(slow))
        until(lambda: not model.inside)
        assert [view.state for view in line.finish(slow)] == [State.CANCELLED]
        assert len(model.left) == 1


def test_what_fails_alone_harms_nobody_else() -> None:
    given: list[dict[str, Any]] = [{"steps": 2} for _ in range(20)]
    given[3]["fail"] = given[7]["refuse"] = given[11]["crash"] = True
    with Line({"m": Counting()}) as line:
        views = line.finish(line.submit("m", given))
    assert [view.state for view in views].count(State.FAILED) == 3
    assert {place for place, view in enumerate(views) if view.state is State.FAILED} == {3, 7, 11}
    for place, words in ((3, "as asked"), (7, "refused"), (11, "a step failed")):
        error = views[place].error
        assert error is not None
        assert words in error.message


def test_company_grows_again_after_a_step_failed() -> None:
    model = Counting(most_jobs=8)
    with Line({"m": model}) as line:
        line.finish(line.submit("m", [{"steps": 1, "crash": n == 0} for n in range(8)]))
        model.seen.clear()
        line.finish(line.submit("m", [{"steps": 3} for _ in range(60)]))
    assert max(model.seen) == 8


def test_a_retryable_failure_is_tried_again() -> None:
    class Once(Counting):
        tried = False

        def _output(self, state: dict[str, Any]) -> Any:
            if not self.tried:
                self.tried = True
                return RetryableModelError("try again")
            return 1

    with Line({"m": Once()}) as line:
        views = line.finish(line.submit("m", [{"steps": 1}]))
    assert views[0].state is State.SUCCEEDED
    assert views[0].failures == 1


def test_one_that_takes_too_long_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting()
    with Line({"m": model}) as line:
        settings = line.served["m"].settings
        monkeypatch.setattr(line.served["m"], "settings", type(settings)(name="m", runtime="t:M", max_run_seconds=0.2))
        views = line.finish(line.submit("m", [{"steps": 1, "forever": True}, {"steps": 3}, {"steps": 5}]))
    assert value_of(views[0]) == "timeout"
    assert [view.state for view in views[1:]] == [State.SUCCEEDED] * 2


def test_suspects_are_inside_alone() -> None:
    with Line({"m": Counting(most_jobs=4)}) as line:
        queue_id = line.served["m"].queue_ids[Lane.FIRM]
        ids = line.submit("m", [{"steps": 4} for _ in range(12)], tickets=False)
        died = line.register()
        line.claim(ids[4:6], queue_id=queue_id, owner=died)
        assert line.store.bury(died, executing=ids[4:6])
        line.store.reap(limit=100)
        line.ticket(queue_id, ids)
        most = [value_of(view)["most"] for view in line.finish(ids)]
    assert most[4:6] == [1, 1]
    assert max(most) == 4


def test_other_models_of_the_consumer_go_on() -> None:
    model = Counting()
    with Line({"m": model, "n": NoOp()}) as line:
        line.submit("m", [{"steps": 1, "forever": True}])
        until(lambda: model.inside)
        views = line.finish(line.submit("n", list(range(500))))
        assert [value_of(view) for view in views] == list(range(500))
        line.pipeline.cancel(frozenset(one.batch.jobs[0].id for one in line.pipeline.running))
        until(lambda: not model.inside)


def test_what_is_inside_at_the_end_is_finished() -> None:
    gate = threading.Semaphore(0)
    model = Counting(gate=gate)
    with Line({"m": model}) as line:
        ids = line.submit("m", [{"steps": 2}])
        until(lambda: model.inside)
        line.pipeline.stop_claiming()
        line.pipeline.take_unstarted(timeout=5)
        assert not line.pipeline.finish_device(timeout=0.01)
        gate.release(10)
        assert line.pipeline.finish_device(timeout=5)
        until(lambda: line.store.finished_among(ids))


def test_pollers_see_what_is_there_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    class Telling(Counting):
        def partial(self, item: Any) -> Any:
            return {"steps": item["steps"]} if item["steps"] > 1 else None

    monkeypatch.setattr("batchyard_consumers.continuous.TELL_SECONDS", 0.0)
    with Line({"m": Telling()}) as line:
        ids = line.submit("m", [{"steps": 9, "forever": True}, {"steps": 1, "forever": True}])

        def told() -> list[bytes | None]:
            return [view.partial_body for view in line.store.get_jobs(ids, tenant_id=1)]

        until(lambda: told() == [b'{"steps":9}', None])
        line.pipeline.cancel(frozenset(ids))
        line.finish(ids)
        assert told() == [None, None]
        assert line.store.forget_progress(limit=10) == 1


def test_status_tells_how_many_are_inside() -> None:
    with Line({"m": Counting(most_jobs=3)}) as line:
        ids = line.submit("m", [{"steps": 1, "forever": True} for _ in range(5)])
        until(lambda: line.pipeline.stages()["device"] == 3)
        assert line.served["m"].speed.batch_jobs == 3

        def are_cancelled() -> bool:
            line.pipeline.cancel(frozenset(ids))
            return len(line.store.finished_among(ids)) == 5

        until(are_cancelled)
