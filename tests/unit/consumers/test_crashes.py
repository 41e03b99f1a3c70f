"""What a stage raises of its own, or a device that is lost, ends the process in order: all is handed back, and nobody
waits for ever."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from batchyard.broker import Broker
from batchyard.jobs import State
from batchyard.model import Model
from batchyard_consumers.drain import Blame, Drain
from batchyard_consumers.samples import NoOp
from tests.unit.consumers.line import Line, until
from tests.unit.consumers.test_continuous import Counting
from tests.unit.consumers.test_ends import heartbeat


def end(line: Line, *, blame: Blame | None = None) -> None:
    """Drain; the grace bounds it."""
    ending = Drain(
        line.pipeline,
        store=line.store,
        broker=Broker("memory://"),
        heartbeat=heartbeat(line),
        meter=line.meter,
        grace_seconds=3.0,
        queue_names={queue.queue_id: f"q{queue.queue_id}" for queue in line.queues},
        blame=lambda: blame,
    )
    started = time.monotonic()
    ending.run(reason="test")
    assert time.monotonic() - started < 10


PLANTED: dict[str, Callable[[Line], tuple[Any, str]]] = {
    "claim": lambda line: (line.pipeline.claimer, "_step"),
    "preprocess": lambda line: (line.pipeline._preparer, "_prepare"),
    "device": lambda line: (line.pipeline.device, "_hand_on"),
    "postprocess": lambda line: (line.pipeline._postprocessor, "_outcomes"),
    "persist": lambda line: (line.pipeline.persister, "_write_part"),
}


@pytest.mark.parametrize("stage", PLANTED)
def test_a_stage_that_breaks_ends_the_process_and_no_job(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("planted")

    with Line({"noop": NoOp()}, budget=2) as line:
        place, name = PLANTED[stage](line)
        monkeypatch.setattr(place, name, break_down)
        ids = line.submit("noop", list(range(40)))
        until(lambda: line.crashes)
        end(line)
        assert {view.state for view in line.store.get_jobs(ids, tenant_id=1)} <= {State.QUEUED, State.SUCCEEDED}
        assert line.store.consumers()[0].state == "gone"
        assert all(told.startswith(stage) and "planted" in told for told in line.crashes)
        line.crashes.clear()


def test_a_loop_that_breaks_ends_the_process_and_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line({"counting": Counting()}) as line:
        monkeypatch.setattr(line.meter, "stepped", lambda *_, **__: 1 / 0)
        ids = line.submit("counting", [{"steps": 3}] * 5)
        until(lambda: line.crashes)
        end(line)
        assert {view.state for view in line.store.get_jobs(ids, tenant_id=1)} == {State.QUEUED}
        assert line.crashes == ["continuous-counting@1: ZeroDivisionError('division by zero')"]
        line.crashes.clear()


class Fragile(Model):
    """Loses its device with one input."""

    def forward(self, items: Sequence[Any]) -> Any:
        if "guilty" in items:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return items


def test_a_lost_device_makes_suspects_of_its_batch_and_hands_back_the_rest() -> None:
    with Line({"fragile": Fragile()}, budget=4) as line:
        ids = line.submit("fragile", ["guilty", *range(40)])
        until(lambda: line.lost)
        [(owner, blamed, _)] = line.lost
        end(line, blame=Blame(owner=owner, executing=blamed, cause="lost its device"))
        assert line.store.consumers()[0].state == "dead"
        line.store.reap(limit=1000)
        views = line.store.get_jobs(ids, tenant_id=1)
        assert {view.state for view in views} <= {State.QUEUED, State.SUCCEEDED}
        queued = [view.id for view in views if view.state is State.QUEUED]
        again = line.claim(queued, queue_id=views[0].queue_id, owner=line.register())
        assert {job.id for job in again if job.suspect} == set(blamed)
        assert {view.failures for view in views} == {0}
