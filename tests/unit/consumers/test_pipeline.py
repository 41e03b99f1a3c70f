import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from batchyard.errors import InvalidInput, RetryableModelError, Unavailable
from batchyard.jobs import Lane, Outcome, State
from batchyard.model import Model
from batchyard.store.base import PayloadInfo
from batchyard.testing import memory_store
from batchyard_consumers.held import MAX_HELD_JOBS
from batchyard_consumers.samples import Lengths, Moody, NoOp
from tests.unit.consumers.line import Line, until, value_of


def test_jobs_come_back_with_their_own_results() -> None:
    with Line({"noop": NoOp()}) as line:
        inputs = [{"n": n} for n in range(1000)]
        ids = line.submit("noop", inputs)
        views = line.finish(ids)
        assert [value_of(view) for view in views] == inputs
        assert {view.attempt for view in views} == {1}
        until(lambda: len(line.done) == 8)
        assert sorted(line.hinted) == ids
        until(lambda: line.pipeline.holding.jobs == 0)
        assert line.pipeline.stages() == {"preprocess": 0, "pool": 0, "device": 0, "postprocess": 0, "persist": 0}


def test_batches_hold_neighbours_in_length_within_the_budget() -> None:
    seen: list[list[int]] = []

    class Watched(Lengths):
        def forward(self, items: Sequence[str]) -> Any:
            seen.append([len(item) for item in items])
            return super().forward(items)

    with Line({"lengths": Watched()}, budget=200) as line:
        texts = ["x" * (1 + n % 50) for n in range(500)]
        views = line.finish(line.submit("lengths", texts))
        assert [value_of(view)["length"] for view in views] == [len(text) for text in texts]
        assert all(max(batch) * len(batch) <= 200 for batch in seen)
        padding = sum(max(batch) * len(batch) for batch in seen) / sum(map(sum, seen))
        assert padding < 1.35
        assert [view.cost for view in views] == [len(text) for text in texts]
        until(lambda: line.pipeline.holding.jobs == 0)
        told = line.meter.stats(list(line.served.values()), stages={})["models"]["lengths@1"]
        assert sum(told["closed"].values()) == len(seen)
        assert set(told["closed"]) <= {"full", "outlier", "drained"}
        assert told["padding"] == pytest.approx(1 - 1 / padding, abs=0.001)
        assert 0.5 < told["fill"] <= 1
        samples = line.meter.metrics.batches.labels("lengths@1", "full")._value.get()
        assert samples == told["closed"].get("full", 0) > 0


def test_several_models_share_a_consumer() -> None:
    with Line({"noop": NoOp(), "lengths": Lengths()}) as line:
        first = line.submit("noop", list(range(300)))
        second = line.submit("lengths", ["x" * n for n in range(1, 301)])
        assert [value_of(view) for view in line.finish(first)] == list(range(300))
        assert [value_of(view)["length"] for view in line.finish(second)] == list(range(1, 301))


# --- one bad job ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "code"),
    [("raise", "model_error"), ("invalid", "invalid_input"), ("nan", "bad_output"), ("missing", "bad_output")],
)
def test_only_the_guilty_job_fails(deed: str, code: str) -> None:
    with Line({"moody": Moody()}) as line:
        inputs: list[dict[str, Any]] = [{"do": "echo", "value": n} for n in range(200)]
        inputs[77] = {"do": deed}
        values = [value_of(view) for view in line.finish(line.submit("moody", inputs))]
        assert values == [*range(77), code, *range(78, 200)]


def test_several_guilty_jobs_are_all_found() -> None:
    with Line({"moody": Moody()}) as line:
        guilty = {3, 4, 90, 199}
        inputs = [{"do": "raise"} if n in guilty else {"do": "echo", "value": n} for n in range(200)]
        values = [value_of(view) for view in line.finish(line.submit("moody", inputs))]
        assert values == ["model_error" if n in guilty else n for n in range(200)]


def test_an_input_that_is_not_json_fails_alone() -> None:
    with Line({"noop": NoOp()}) as line:
        ids = line.submit("noop", [1, b"{", b"2, 3", 4])
        assert [value_of(view) for view in line.finish(ids)] == [1, "invalid_input", "invalid_input", 4]


def test_an_input_that_does_not_fit_the_schema_fails_alone() -> None:
    from batchyard.inputs import Validator

    with Line({"noop": NoOp()}) as line:
        line.served["noop"].validator = Validator({"type": "integer"})
        views = line.finish(line.submit("noop", [1, "two", 3]))
        assert [value_of(view) for view in views] == [1, "invalid_input", 3]
        assert views[1].error is not None
        assert "/input" in views[1].error.message


class Grumpy(Model):
    """Raises in preprocess and in cost, for one input each."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        if "stop" in inputs:
            raise KeyError("stop")
        if "refuse" in inputs:
            raise InvalidInput("not that")
        return list(inputs)

    def cost(self, item: Any) -> int:
        return {"free": 0, "boundless": 1 << 63}[item] if isinstance(item, str) else 1

    def forward(self, items: Sequence[Any]) -> Any:
        return items


def test_what_preprocess_or_cost_raise_fails_the_guilty_alone() -> None:
    with Line({"grumpy": Grumpy()}) as line:
        views = line.finish(line.submit("grumpy", [1, "stop", 2, "refuse", 3, "costly", "free", "boundless"]))
        assert [value_of(view) for view in views] == [
            1,
            "model_error",
            2,
            "invalid_input",
            3,
            "model_error",
            "free",
            "model_error",
        ]


def test_inputs_are_grouped_by_their_params() -> None:
    class Adds(Model):
        def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
            return [value + params.get("plus", 0) for value in inputs]

        def forward(self, items: Sequence[Any]) -> Any:
            return items

    with Line({"adds": Adds()}) as line:
        plain = line.submit("adds", [1, 2], tickets=False)
        plus = line.submit("adds", [1, 2], params=b'{"plus": 10}', tickets=False)
        line.ticket(line.served["adds"].queue_ids[Lane.FIRM], [*plain, *plus])
        assert [value_of(view) for view in line.finish([*plain, *plus])] == [1, 2, 11, 12]


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_rows_of_a_tensor_stay_binary() -> None:
    class Rows(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            return torch.tensor(items, dtype=torch.float32)

    with Line({"rows": Rows()}) as line:
        views = line.finish(line.submit("rows", [[n, n + 0.5] for n in range(50)]))
        assert {view.result_format for view in views} == {1}
        row = value_of(views[7])
        assert row.dtype == np.float32
        assert row.tolist() == [7.0, 7.5]


def test_one_row_with_nan_fails_alone() -> None:
    class Rows(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            return torch.tensor([[float("nan") if item is None else item] for item in items])

    with Line({"rows": Rows()}) as line:
        views = line.finish(line.submit("rows", [1, None, 3]))
        assert [view.state for view in views] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
        assert value_of(views[1]) == "bad_output"


def test_forward_runs_under_inference_mode_and_postprocess_is_called_once_a_batch() -> None:
    calls: list[bool] = []

    class Watched(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            calls.append(torch.is_inference_mode_enabled())
            return items

        def postprocess(self, outputs: Any) -> Sequence[Any]:
            return iter([f"{item}!" for item in outputs])  # type: ignore[return-value]

    with Line({"watched": Watched()}) as line:
        assert [value_of(view) for view in line.finish(line.submit("watched", ["a", "b"]))] == ["a!", "b!"]
    assert calls
    assert all(calls)


# --- retries, memory, cancellation ------------------------------------------------------------------------------------


class Busy(Model):
    """Asks for another try until `patience` calls have been made."""

    def __init__(self, patience: int) -> None:
        self.left = patience

    def forward(self, items: Sequence[Any]) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise RetryableModelError("not now")
        return items


def test_a_retryable_failure_is_tried_again() -> None:
    with Line({"busy": Busy(2)}, budget=10) as line:
        views = line.finish(line.submit("busy", [1, 2, 3]))
        assert [value_of(view) for view in views] == [1, 2, 3]
        assert {view.failures for view in views} == {2}


def test_the_budget_of_failures_ends_the_tries() -> None:
    with Line({"busy": Busy(1000)}) as line:
        (view,) = line.finish(line.submit("busy", [1], max_failures=2))
        assert (view.state, view.failures, view.attempt, value_of(view)) == (State.FAILED, 2, 2, "model_busy")


def test_a_batch_beyond_the_memory_is_split_and_costs_nobody_a_try() -> None:
    class Small(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            if len(items) > 4:
                raise torch.OutOfMemoryError("too many")
            return items

    with Line({"small": Small()}) as line:
        views = line.finish(line.submit("small", list(range(64))))
        assert [value_of(view) for view in views] == list(range(64))
        assert {view.failures for view in views} == {0}
        assert line.served["small"].speed.budget < 32


def test_a_job_that_alone_is_beyond_the_memory_is_too_large() -> None:
    class Small(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            if max(items) > 9:
                raise torch.OutOfMemoryError("too large")
            return items

    with Line({"small": Small()}) as line:
        assert [value_of(view) for view in line.finish(line.submit("small", [1, 99, 3]))] == [1, "too_large", 3]


class Gate(Model):
    """Holds every batch until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.seen: list[Any] = []

    def forward(self, items: Sequence[Any]) -> Any:
        self.entered.set()
        assert self.opened.wait(20)
        self.seen += items
        return items


def test_a_job_cancelled_after_its_claim_leaves_before_its_batch() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        first, second, third = line.submit("gate", ["first", "second", "third"])
        assert gate.entered.wait(10)
        until(lambda: line.pipeline.stages()["pool"] == 2)
        line.store.cancel(second, tenant_id=1)
        renewal = line.store.renew(line.owner, lease_ms=60_000, state="ready", stats={})
        assert list(renewal.cancelled) == [second]
        line.pipeline.cancel(frozenset(renewal.cancelled))
        gate.opened.set()
        views = line.finish([first, second, third])
        assert [view.state for view in views] == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]
        assert gate.seen == ["first", "third"]


# --- several passes at a time -----------------------------------------------------------------------------------------


class Meeting(Model):
    """Counts the passes that run at the same time, and notes on how many cores."""

    def __init__(self, *, expects: int) -> None:
        self.concurrent_forward = expects > 1
        self.cores: set[int] = set()
        self._met = threading.Barrier(expects)
        self._inside = threading.Semaphore(expects)

    def forward(self, items: Sequence[Any]) -> Any:
        assert self._inside.acquire(blocking=False), "more at a time than may be"
        try:
            self._met.wait(20)
            self.cores.add(torch.get_num_threads())
            return items
        finally:
            self._inside.release()


def test_passes_of_a_model_that_allows_it_share_the_cores() -> None:
    model = Meeting(expects=2)
    with Line({"model": model}, budget=1) as line:
        views = line.finish(line.submit("model", list(range(6))))
        assert [value_of(view) for view in views] == list(range(6))
        assert model.cores == {1}


def test_passes_of_other_models_come_one_after_the_other_on_all_cores() -> None:
    model = Meeting(expects=1)
    with Line({"model": model}, budget=1) as line:
        line.finish(line.submit("model", list(range(20))))
        assert model.cores == {2}


def test_a_model_that_allows_no_more_runs_beside_one_that_does() -> None:
    gate, meeting = Gate(), Meeting(expects=2)
    with Line({"gate": gate, "meeting": meeting}, budget=1) as line:
        held = line.submit("gate", [1])
        assert gate.entered.wait(10)
        more = line.submit("gate", [2])
        # The one share that is left serves it, but two passes can only meet once the gate is open.
        met = line.submit("meeting", [3, 4])
        until(lambda: len(line.pipeline.device.running) == 2)
        assert {running.batch.served.name for running in line.pipeline.device.running} == {"gate@1", "meeting@1"}
        gate.opened.set()
        assert [value_of(view) for view in line.finish([*held, *more, *met])] == [1, 2, 3, 4]


def test_a_pass_on_half_of_the_device_counts_half_of_its_time() -> None:
    gate = Gate()
    gate.concurrent_forward = True
    with Line({"gate": gate}, budget=1) as line:
        ids = line.submit("gate", ["a", "b"])
        until(lambda: sum(running.since < math.inf for running in line.pipeline.device.running) == 2)
        first, last = sorted(running.since for running in line.pipeline.device.running)
        until(lambda: time.monotonic() - last > 0.2)
        gate.opened.set()
        views = line.finish(ids)
        elapsed = time.monotonic() - first
        assert line.meter.busy_seconds <= elapsed
        for view in views:
            assert view.device_us is not None
            assert 0.09 < view.device_us / 1e6 <= elapsed / 2


def test_suspects_run_alone_whatever_the_model_allows() -> None:
    alone = Meeting(expects=1)
    alone.concurrent_forward = True
    with Line({"model": alone}, budget=1) as line:
        ids = line.submit("model", [1, 2, 3], tickets=False)
        line.store.release(
            line.claim(ids, queue_id=line.served["model"].queue_ids[Lane.FIRM]), owner=line.owner, suspect=True
        )
        line.ticket(line.served["model"].queue_ids[Lane.FIRM], ids)
        line.finish(ids)


# --- lanes, order, holding --------------------------------------------------------------------------------------------


def test_firm_work_is_served_before_tolerant_work() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        line.served["gate"].speed.observe(padded_cost=1, cost=1, jobs=1, seconds=0.001)
        opener = line.submit("gate", ["opener"])
        assert gate.entered.wait(10)
        tolerant = line.submit("gate", ["t1", "t2"], lane=Lane.TOLERANT)
        until(lambda: line.pipeline.stages()["pool"] == 2)
        firm = line.submit("gate", ["f1", "f2"])
        until(lambda: line.pipeline.stages()["pool"] == 4)
        gate.opened.set()
        line.finish([*opener, *tolerant, *firm])
        assert gate.seen == ["opener", "f1", "f2", "t1", "t2"]


def test_a_spot_consumer_takes_tolerant_queues_only() -> None:
    line = Line({"noop": NoOp(), "lengths": Lengths()}, capacity="spot")
    assert [queue.is_firm for queue in line.queues] == [False, False]
    on_demand = Line({"noop": NoOp(), "lengths": Lengths()})
    assert [queue.is_firm for queue in on_demand.queues] == [True, True, False, False]


def test_no_more_is_claimed_than_the_device_can_soon_use() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=8) as line:
        ids = line.submit("gate", list(range(512)))
        assert gate.entered.wait(10)
        until(lambda: line.pipeline.stages()["pool"] > 0)
        running = sum(view.state is State.RUNNING for view in line.store.get_jobs(ids, tenant_id=1))
        # One batch on the device, and two more while nothing is known of the model's speed.
        assert running <= 8 + 2 * 8
        assert len(line.done) == 0
        gate.opened.set()
        line.finish(ids)
        until(lambda: len(line.done) == 4)


def test_a_sliver_of_a_ticket_is_left_until_more_is_missing() -> None:
    line = Line({"noop": NoOp()}, budget=8)
    served, claimer, holding = line.served["noop"], line.pipeline.claimer, line.pipeline.holding
    served.speed.observe(padded_cost=8, cost=8, jobs=8, seconds=0.04)
    # Two seconds of work at 5 ms a job, but no more than 32 batches.
    ids = line.submit("noop", list(range(600)), tickets=False)
    line.ticket(served.queue_ids[Lane.FIRM], ids, size=600)
    assert claimer.step()
    assert holding.ahead(served) == 256
    holding.left_pool(served, 60)
    assert not claimer.step()
    holding.left_pool(served, 4)
    assert claimer.step()
    assert holding.ahead(served) == 256
    # What is wholly at hand is taken at once.
    holding.left_pool(served, 30)
    few = line.submit("noop", [1, 2], lane=Lane.TOLERANT, tickets=False)
    line.ticket(served.queue_ids[Lane.TOLERANT], few)
    assert not claimer.step(), "firm jobs are left"
    holding.left_pool(served, 226)
    assert claimer.step()
    line.store.close()


def test_whatever_there_is_room_for_is_claimed_where_nothing_waits() -> None:
    line = Line({"noop": NoOp()}, budget=8)
    served, claimer, holding = line.served["noop"], line.pipeline.claimer, line.pipeline.holding
    holding._jobs = MAX_HELD_JOBS - 3
    ids = line.submit("noop", list(range(10)))
    assert claimer.step()
    assert holding.ahead(served) == 3
    assert [view.state for view in line.store.get_jobs(ids, tenant_id=1)].count(State.RUNNING) == 3
    line.store.close()


def test_a_model_that_is_not_loaded_is_not_claimed() -> None:
    with Line({"later": None, "noop": NoOp()}) as line:
        later = line.submit("later", [1])
        line.finish(line.submit("noop", [1]))
        assert line.store.get_jobs(later, tenant_id=1)[0].state is State.QUEUED
        model = NoOp()
        model.load("cpu")
        line.served["later"].install(model, load_seconds=0.0)
        line.pipeline.inbox.changed.set()
        line.finish(later)


# --- the database away, the registration lost -------------------------------------------------------------------------


def test_results_are_kept_while_the_database_is_away() -> None:
    store = memory_store()
    away = threading.Event()
    refused = threading.Event()
    finish = store.finish

    def unsteady(outcomes: Sequence[Outcome], *, owner: int) -> list[int]:
        if away.is_set():
            refused.set()
            raise Unavailable("away")
        return finish(outcomes, owner=owner)

    store.finish = unsteady  # type: ignore[method-assign]
    with Line({"noop": NoOp()}, store=store) as line:
        away.set()
        ids = line.submit("noop", list(range(10)))
        assert refused.wait(10)
        until(lambda: line.pipeline.holding.jobs == 10)
        away.clear()
        assert [value_of(view) for view in line.finish(ids)] == list(range(10))


def test_a_result_that_the_database_does_not_take_fails_its_own_job() -> None:
    with Line({"noop": NoOp()}) as line:
        finish = line.store.finish

        def choosy(outcomes: Sequence[Outcome], *, owner: int) -> list[int]:
            if any(b"huge" in (outcome.body or b"") for outcome in outcomes):
                raise OverflowError("string or blob too big")
            return finish(outcomes, owner=owner)

        line.store.finish = choosy  # type: ignore[method-assign]
        views = line.finish(line.submit("noop", [*range(50), "huge", *range(50)]))
        assert [value_of(view) for view in views] == [*range(50), "bad_output", *range(50)]


def test_a_claim_is_repeated_once_the_database_is_back() -> None:
    store = memory_store()
    claim, failures = store.claim, iter([Unavailable("away"), Unavailable("away")])

    def unsteady(*arguments: Any, **named: Any) -> Any:
        for failure in failures:
            raise failure
        return claim(*arguments, **named)

    store.claim = unsteady  # type: ignore[method-assign]
    with Line({"noop": NoOp()}, store=store) as line:
        assert [value_of(view) for view in line.finish(line.submit("noop", [5]))] == [5]


def test_a_lost_registration_drops_everything_and_fences_what_still_runs() -> None:
    gate = Gate()
    with Line({"gate": gate}, budget=1) as line:
        ids = line.submit("gate", ["a", "b", "c"])
        assert gate.entered.wait(10)
        until(lambda: line.pipeline.stages()["pool"] == 2)
        line.store.deregister(line.owner)
        assert not line.store.renew(line.owner, lease_ms=60_000, state="ready", stats={}).alive
        line.pipeline.restart(line.register())
        gate.opened.set()
        until(lambda: line.pipeline.holding.jobs == 0)
        assert {view.state for view in line.store.get_jobs(ids, tenant_id=1)} == {State.QUEUED}
        line.ticket(line.served["gate"].queue_ids[Lane.FIRM], ids)
        views = line.finish(ids)
        assert {view.attempt for view in views} == {2}


# --- the idle claim ---------------------------------------------------------------------------------------------------


def test_what_no_ticket_tells_of_is_claimed_from_the_database() -> None:
    store = memory_store()
    heads: list[int] = []

    def read_head(queue_id: int, limit: int) -> list[int]:
        heads.append(queue_id)
        lines = store.head(queue_id, after={}, jobs=limit, urgent_before_ms=0)
        return [candidate.id for line in lines for candidate in line.candidates]

    with Line({"noop": NoOp()}, store=store, read_head=read_head) as line:
        ids = line.submit("noop", list(range(200)), tickets=False)
        tolerant = line.submit("noop", [1], lane=Lane.TOLERANT, tickets=False)
        line.finish([*ids, *tolerant])
        assert heads[0] == line.served["noop"].queue_ids[Lane.FIRM]


def test_nobody_looks_while_tickets_come() -> None:
    def read_head(_queue: int, _limit: int) -> list[int]:
        raise AssertionError("looked")

    with Line({"noop": NoOp()}, read_head=read_head) as line:
        for _ in range(5):
            line.finish(line.submit("noop", [1]))


# --- payloads ---------------------------------------------------------------------------------------------------------


class Objects:
    def read(self, location: str) -> bytes:
        return f"bytes of {location}".encode()


def test_payloads_come_in_the_place_of_their_references() -> None:
    class Sizes(Model):
        def forward(self, items: Sequence[Any]) -> Any:
            return [item["image"].decode() for item in items]

    with Line({"sizes": Sizes()}, objects=Objects()) as line:
        for tenant_id, number in ((1, 16), (2, 17)):
            line.store.expect_payload(number, location=f"{number}")
            line.store.add_payload(
                PayloadInfo(
                    id=number, tenant_id=tenant_id, content_type="x/y", size=1, digest=b"", location=f"{number}"
                )
            )
        references = [{"image": {"$payload": f"{number:016x}"}} for number in (16, 17, 18)]
        values = [value_of(view) for view in line.finish(line.submit("sizes", references))]
        assert values == ["bytes of 16", "invalid_input", "invalid_input"]
