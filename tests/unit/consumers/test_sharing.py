"""Models whose results serve other jobs: what is computed, what is served, what waits, in whole pipelines."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from batchyard.errors import InvalidInput, Unavailable
from batchyard.jobs import State, format_id
from batchyard.model import Model
from batchyard.payloads import location_of
from batchyard.store.base import PayloadInfo
from batchyard.testing import memory_store
from tests.unit.consumers.line import Line, until, value_of


class Echo(Model):
    """Notes what reaches the device; `gate` holds it there."""

    def load(self, device: str) -> None:
        self.ran: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, items: Sequence[Any]) -> Any:
        assert self.gate.wait(10)
        self.ran += items
        return list(items)


class Folded(Echo):
    """Tells texts apart by their letters alone; "!" is not to be shared, and "?" has no key."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [InvalidInput("no text") if text is None else text for text in inputs]

    def cache_key(self, item: Any) -> str | None:
        if item == "?":
            raise ValueError("no key")
        return None if item == "!" else item.casefold()


def counted(line: Line, name: str = "m") -> dict[str, int]:
    told: dict[str, int] = line.meter.stats([line.served[name]], stages={})["models"][f"{name}@1"]["cache"]
    return {outcome: count for outcome, count in told.items() if count}


def test_a_model_that_does_not_ask_for_it_computes_every_job() -> None:
    model = Echo()
    with Line({"m": model}) as line:
        line.store.share = None  # type: ignore[assignment,method-assign]  # nobody asks
        line.finish(line.submit("m", ["a"] * 20))
        assert model.ran == ["a"] * 20
        assert counted(line) == {}


def test_equal_jobs_of_two_consumers_run_once_and_all_have_the_result() -> None:
    models = Echo(), Echo()
    store = memory_store()
    with (
        Line({"m": models[0]}, store=store, cache_seconds=60) as one,
        Line({"m": models[1]}, store=store, cache_seconds=60) as two,
    ):
        models[0].gate.clear()
        models[1].gate.clear()
        # White space and the order of members make no difference.
        bodies = [b'{"a": 1, "b": [2]}', b'{"b":[2],"a":1}'] * 25
        ids = one.submit("m", bodies, tickets=False)
        one.ticket(one.queues[0].queue_id, ids[::2])
        two.ticket(two.queues[0].queue_id, ids[1::2])
        until(lambda: len([view for view in store.get_jobs(ids, tenant_id=1) if view.is_following]) == 49)
        models[0].gate.set()
        models[1].gate.set()
        views = one.finish(ids)
        assert [value_of(view) for view in views] == [{"a": 1, "b": [2]}] * 50
        assert models[0].ran + models[1].ran == [{"a": 1, "b": [2]}]
        (first,) = [view for view in views if view.computed_by is None]
        assert {view.computed_by for view in views} == {None, first.id}
        assert {view.failures for view in views} == {0}
        assert {view.device_us for view in views if view is not first} == {0}
        until(lambda: one.pipeline.holding.jobs == two.pipeline.holding.jobs == 0)
        sums = [counted(line) for line in (one, two)]
        assert sum(each.get("miss", 0) for each in sums) == 1
        assert sum(each.get("hit", 0) for each in sums) == 49
        assert sum(each.get("wait", 0) for each in sums) >= 49


def test_parameters_tenants_and_versions_are_told_apart() -> None:
    model, other = Echo(), Echo()
    with Line({"m": model, "n": other}, cache_seconds=60) as line:
        tenant = line.store.create_tenant("t").id
        for fields in ({}, {"params": b'{"k":1}'}, {"tenant_id": tenant}, {}, {"params": b'{"k": 1}'}):
            ids = line.submit("m", ["a"], tickets=False, **fields)
            line.ticket(line.queues[0].queue_id, ids)
            until(lambda ids=ids: line.store.finished_among(ids) == ids)  # type: ignore[misc]
        line.finish(line.submit("n", ["a"]))
        assert (model.ran, other.ran) == (["a"] * 3, ["a"])


def test_across_tenants_where_that_is_allowed_and_nobody_hears_of_the_other() -> None:
    model = Echo()
    with Line({"m": model}, cache_seconds=60, cache_across_tenants=True) as line:
        tenant = line.store.create_tenant("t").id
        theirs = line.submit("m", ["a"], tickets=False, tenant_id=tenant)
        line.ticket(line.queues[0].queue_id, theirs)
        until(lambda: line.store.finished_among(theirs) == theirs)
        (view,) = line.finish(line.submit("m", ["a"]))
        assert (value_of(view), view.computed_by, model.ran) == ("a", 0, ["a"])


def test_a_model_says_itself_what_is_the_same() -> None:
    model = Folded()
    with Line({"m": model}, cache_seconds=60) as line:
        assert [value_of(view) for view in line.finish(line.submit("m", ["A"]))] == ["A"]
        views = line.finish(line.submit("m", ["a", "b", "!", "!", "?", "?", None]))
        assert [value_of(view) for view in views] == ["A", "b", "!", "!", "?", "?", "invalid_input"]
        assert sorted(model.ran) == ["!", "!", "?", "?", "A", "b"]
        assert counted(line) == {"hit": 1, "miss": 2}


def test_payloads_are_told_by_their_bytes() -> None:
    class Objects:
        def read(self, location: str) -> bytes:
            return b"bytes"

    model = Echo()
    model.postprocess = lambda outputs: [len(str(output)) for output in outputs]  # type: ignore[method-assign]
    with Line({"m": model}, cache_seconds=60, objects=Objects()) as line:
        inputs = []
        for number, digest in ((1 << 40, b"x"), ((1 << 40) + 1, b"x"), ((1 << 40) + 2, b"y")):
            where = location_of(number, tenant_id=1)
            line.store.expect_payload(number, location=where)
            line.store.add_payload(
                PayloadInfo(id=number, tenant_id=1, content_type="x/y", size=5, digest=digest, location=where)
            )
            inputs.append({"image": {"$payload": format_id(number)}})
        for value in inputs:
            line.finish(line.submit("m", [value]))
        assert len(model.ran) == 2


def test_a_failure_fails_nobody_else() -> None:
    class Once(Echo):
        def forward(self, items: Sequence[Any]) -> Any:
            out = super().forward(items)
            if len(self.ran) == 1:
                raise ValueError("the first fails")
            return out

    model = Once()
    with Line({"m": model}, cache_seconds=60) as line:
        model.gate.clear()
        ids = line.submit("m", ["a"] * 10)
        until(lambda: len([view for view in line.store.get_jobs(ids, tenant_id=1) if view.is_following]) == 9)
        model.gate.set()
        values = [value_of(view) for view in line.finish(ids)]
        assert sorted(values) == ["a"] * 9 + ["model_error"]


def test_without_its_database_the_cache_is_not_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("away")

    model = Echo()
    with Line({"m": model}, cache_seconds=60) as line:
        monkeypatch.setattr(line.store, "share", away)
        assert {view.state for view in line.finish(line.submit("m", ["a"] * 5))} == {State.SUCCEEDED}
        assert model.ran == ["a"] * 5
