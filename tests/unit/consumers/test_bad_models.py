"""Models that do what they should not: nobody but the guilty job is harmed, and all time of the device is counted."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from batchyard.jobs import State
from batchyard.model import ContinuousModel, Model
from batchyard.store.base import JobView
from batchyard_consumers.failures import describe, is_out_of_memory, loses_device
from batchyard_consumers.samples import Lengths
from tests.unit.consumers.line import Line, until, value_of


def codes_of(views: Sequence[JobView]) -> dict[int, str]:
    """Place → code of the error, of those that failed."""
    return {place: view.error.code for place, view in enumerate(views) if view.error is not None}


# --- what is changed in passing ---------------------------------------------------------------------------------------


class Spoiling(Model):
    """Changes its items before it fails on one of them."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [np.array([value], dtype=float) for value in inputs]

    def forward(self, items: Sequence[Any]) -> Any:
        for item in items:
            np.multiply(item, 2, out=item)
        if any(item[0] == 2 * 77 for item in items):
            raise ValueError("not 77")
        return [float(item[0]) for item in items]


def test_a_forward_that_changes_its_items_is_given_fresh_ones_in_the_search() -> None:
    with Line({"model": Spoiling()}) as line:
        views = line.finish(line.submit("model", list(range(200))))
        assert codes_of(views) == {77: "model_error"}
        assert [value_of(view) for view in views if view.error is None] == [2.0 * n for n in range(200) if n != 77]


class Emptying(Model):
    """Takes its inputs apart before it fails on one of them."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        items = [value.pop("n") for value in inputs]
        if 5 in items:
            raise ValueError("not 5")
        return items

    def forward(self, items: Sequence[Any]) -> Any:
        return items


def test_a_preprocess_that_changes_its_inputs_is_given_fresh_ones_in_the_search() -> None:
    with Line({"model": Emptying()}) as line:
        views = line.finish(line.submit("model", [{"n": n} for n in range(40)]))
        assert codes_of(views) == {5: "model_error"}


class ForgetfulLoop(ContinuousModel):
    """Keeps what it has done in its items, and fails where one of them is guilty."""

    most_jobs = 8

    def __init__(self) -> None:
        self.inside: dict[int, dict[str, int]] = {}

    def join(self, key: int, item: Any) -> None:
        if "left" not in item:
            raise ValueError("used up")
        self.inside[key] = item

    def step(self) -> Sequence[tuple[int, Any]]:
        for item in self.inside.values():
            item["seen"] = item.pop("left")
        if any(item["seen"] == 3 for item in self.inside.values()):
            raise ValueError("not 3")
        ended = [(key, item["seen"]) for key, item in self.inside.items()]
        self.inside.clear()
        return ended

    def leave(self, key: int) -> None:
        self.inside.pop(key, None)


def test_a_step_that_changes_its_items_is_given_fresh_ones_in_the_search() -> None:
    with Line({"model": ForgetfulLoop()}) as line:
        views = line.finish(line.submit("model", [{"left": n} for n in range(8)]))
        assert codes_of(views) == {3: "model_error"}
        assert [value_of(view) for view in views if view.error is None] == [0, 1, 2, 4, 5, 6, 7]


# --- one in a thousand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guilty", [{500}, {1, 2, 999}])
def test_the_search_takes_few_passes(guilty: set[int]) -> None:
    passes = 0

    class Choosy(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            nonlocal passes
            passes += 1
            if guilty & set(items):
                raise ValueError("one of these")
            return items

    with Line({"model": Choosy()}, budget=1000) as line:
        views = line.finish(line.submit("model", list(range(1000))))
        assert codes_of(views) == dict.fromkeys(guilty, "model_error")
        batches = 1000 / 128 + 1
        assert passes <= batches + 2 * len(guilty) * math.log2(1000)


# --- what is no Exception ---------------------------------------------------------------------------------------------


class Panic(BaseException):
    """As the bindings of native libraries raise it."""


class Quitting(Model):
    """Ends the process politely, at the place that an input names."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        self._quit("preprocess", inputs)
        return inputs

    def cost(self, item: Any) -> int:
        self._quit("cost", [item])
        return 1

    def forward(self, items: Sequence[Any]) -> Any:
        self._quit("forward", items)
        return items

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        self._quit("postprocess", outputs)
        return list(outputs)

    def _quit(self, place: str, values: Sequence[Any]) -> None:
        if place in values:
            raise SystemExit(3)
        if f"panic in {place}" in values:
            raise Panic("called Option::unwrap() on a None value")


def test_what_quits_or_panics_fails_its_own_job() -> None:
    places = ["preprocess", "cost", "forward", "postprocess"]
    guilty = [*places, *(f"panic in {place}" for place in places)]
    with Line({"model": Quitting(), "other": Lengths()}) as line:
        other = line.submit("other", ["abc"] * 50)
        views = line.finish(line.submit("model", ["good", *guilty, "good"]))
        assert [value_of(view) for view in views] == ["good", *["model_error"] * 8, "good"]
        assert {view.error.message for view in views if view.error} == {
            "SystemExit: 3",
            "Panic: called Option::unwrap() on a None value",
        }
        assert {view.state for view in line.finish(other)} == {State.SUCCEEDED}


# --- outputs that are none --------------------------------------------------------------------------------------------


class Lying(list[Any]):
    """Says that it is longer than it is."""

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ("abc", "a str where a list"),
        ({"a": 1, "b": 2, "c": 3}, "a dict where a list"),
        ({1, 2, 3}, "a set where a list"),
        (None, "nothing where a list"),
        ([], "0 results for"),
        (iter([1, 2, 3, 4]), "results for"),
        (Lying([1]), "3 results for"),
        (7, "'int' object is not iterable"),
    ],
)
def test_outputs_that_are_no_list_of_results_are_nobodys_results(outputs: Any, words: str) -> None:
    class Odd(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            return outputs if "odd" in items else items

    with Line({"model": Odd()}, budget=3) as line:
        views = line.finish(line.submit("model", ["odd", "odd", "odd"]))
        assert {value_of(view) for view in views} <= {"bad_output", "model_error"}
        assert all(view.error is not None and words in view.error.message for view in views)
        assert [value_of(view) for view in line.finish(line.submit("model", ["good"]))] == ["good"]


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 1 GiB)",
    ],
)
def test_every_way_to_say_that_memory_is_short(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not loses_device(RuntimeError(words))
    assert describe(RuntimeError(words)).code == "too_large"


def test_the_words_of_an_input_are_no_shortage_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("cannot parse 'we are out of memory'"))
    assert not is_out_of_memory(ValueError("CUDA out of memory"))


def test_one_that_allocates_without_bound_leaves_the_budget_alone() -> None:
    class Greedy(Model):
        def cost(self, item: Any) -> int:
            return 10

        def forward(self, items: Sequence[Any]) -> Any:
            if "greedy" in items:
                torch.empty(1 << 60, dtype=torch.uint8)
            return items

    with Line({"model": Greedy()}) as line:
        line.finish(line.submit("model", list(range(600))))
        before = line.served["model"].speed.budget
        views = line.finish(line.submit("model", [*range(60), "greedy", *range(60)]))
        assert codes_of(views) == {60: "too_large"}
        assert line.served["model"].speed.budget >= before / 2
        assert {view.failures for view in views} == {0, 1}


# --- a device that is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …"),
    ],
)
def test_a_lost_device_ends_the_process_and_blames_its_batch_alone(error: Exception) -> None:
    class Lost(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            raise error

    with Line({"model": Lost()}, budget=4) as line:
        ids = line.submit("model", ["a", "b", "c", "d", "e", "f"])
        until(lambda: line.lost)
        [(owner, blamed, lost_with)] = line.lost
        assert (owner, lost_with) == (line.owner, error)
        assert 0 < len(blamed) <= 4
        assert set(blamed) <= set(ids)
        until(lambda: not line.pipeline.running)
        assert {view.state for view in line.store.get_jobs(ids, tenant_id=1)} == {State.RUNNING}


# --- the device's time ------------------------------------------------------------------------------------------------


class Eventful(Model):
    """Slow enough to be measured; fails where an input says so, in one of several ways."""

    def __init__(self) -> None:
        self.again = {"again"}
        self.pause = threading.Event()

    def cost(self, item: Any) -> int:
        return len(item)

    def forward(self, items: Sequence[Any]) -> Any:
        self.pause.wait(0.002)
        if "large" in items:
            raise torch.OutOfMemoryError("too large")
        if "wrong" in items:
            raise ValueError("wrong")
        if self.again & set(items):
            self.again.clear()
            raise ConnectionError("away for a moment")
        return items

    def postprocess(self, outputs: Any) -> Sequence[Any]:
        if "strange" in outputs:
            raise ValueError("strange")
        return [math.nan if item == "nan" else item for item in outputs]


def test_the_device_seconds_of_all_jobs_are_those_of_the_device() -> None:
    inputs = ["x" * (1 + n % 30) for n in range(200)]
    for place, deed in {3: "large", 50: "wrong", 90: "strange", 120: "nan"}.items():
        inputs[place] = deed
    with Line({"model": Eventful()}, budget=100) as line:
        first = line.finish(line.submit("model", inputs))
        second = line.finish(line.submit("model", ["again"]))
        views = [*first, *second]
        assert codes_of(views) == {3: "too_large", 50: "model_error", 90: "model_error", 120: "bad_output"}
        assert views[-1].failures == 1
        until(lambda: line.pipeline.holding.jobs == 0)
        counted = sum(view.device_us or 0 for view in views) / 1e6
        assert counted == pytest.approx(line.meter.busy_seconds, rel=0.002)
        assert min(view.device_us or 0 for view in views) > 0
        line.store.fold(limit=1000)
        assert sum(row.device_us for row in line.store.usage()) == sum(view.device_us or 0 for view in views)


def test_steps_count_for_those_who_leave_early_too() -> None:
    class Slow(ContinuousModel):
        most_jobs = 4

        def __init__(self) -> None:
            self.inside: dict[int, int] = {}
            self.pause = threading.Event()

        def join(self, key: int, item: Any) -> None:
            self.inside[key] = item

        def step(self) -> Sequence[tuple[int, Any]]:
            self.pause.wait(0.003)
            self.inside = {key: left - 1 for key, left in self.inside.items()}
            ended = [(key, "done") for key, left in self.inside.items() if left <= 0]
            for key, _ in ended:
                del self.inside[key]
            return ended

        def leave(self, key: int) -> None:
            self.inside.pop(key, None)
            raise RuntimeError("nothing is told of this")

    with Line({"model": Slow()}) as line:
        ids = line.submit("model", [3, 100_000, 5])
        until(lambda: len(line.store.finished_among(ids)) == 2)
        line.store.cancel(ids[1], tenant_id=1)
        line.pipeline.cancel(frozenset([ids[1]]))
        views = line.finish(ids)
        assert [view.state for view in views] == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]
        line.store.fold(limit=1000)
        counted = sum(row.device_us for row in line.store.usage()) / 1e6
        assert counted == pytest.approx(line.meter.busy_seconds, rel=0.002)


# --- code that does not end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["preprocess", "forward", "postprocess"])
def test_code_without_end_is_seen_in_every_stage(stage: str) -> None:
    entered, opened = threading.Event(), threading.Event()

    class Stuck(Model):
        def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
            self._pass("preprocess")
            return inputs

        def forward(self, items: Sequence[Any]) -> Any:
            self._pass("forward")
            return items

        def postprocess(self, outputs: Any) -> Sequence[Any]:
            self._pass("postprocess")
            return list(outputs)

        def _pass(self, place: str) -> None:
            if place == stage:
                entered.set()
                assert opened.wait(20)

    with Line({"model": Stuck()}) as line:
        ids = line.submit("model", ["a"])
        assert entered.wait(20)
        [task] = line.pipeline.executing.tasks
        assert [job.id for job in task.jobs] == ids
        opened.set()
        line.finish(ids)
        until(lambda: not line.pipeline.executing.tasks)
