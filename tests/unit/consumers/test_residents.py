"""Models come and go with their work, over a real store and a real pipeline."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from batchyard import flight_recorder
from batchyard.flight_recorder import FlightRecorder
from batchyard.jobs import Lane, State
from batchyard.model import Model
from batchyard.settings import ModelSettings, PoolSettings
from batchyard_consumers import residency, residents
from batchyard_consumers.host_copies import GIB, size_of
from batchyard_consumers.loading import FIRST_REST_SECONDS, Loader
from batchyard_consumers.residents import Residents, declared_size, room_on
from tests.unit.consumers.jobs import served
from tests.unit.consumers.line import Line, until, value_of

HERE = "tests.unit.consumers.test_residents"
ROOM = 2.5 * 4000


class Sized(Model):
    """A thousand float32, and its name in every result."""

    loads: list[str] = []  # noqa: RUF012  of all, in order

    def load(self, device: str) -> None:
        self.loads.append(self.options.get("name", ""))
        self.weights = torch.zeros(1000)
        if self.options.get("broken"):
            raise RuntimeError("no weights")

    def forward(self, items: Sequence[Any]) -> Any:
        return list(items)


class Yard:
    """Versions a, b, c, … of 4,000 bytes each on a line, none loaded, with a clock of its own."""

    def __init__(
        self,
        *names: str,
        room: float = ROOM,
        host_room: float = 0.0,
        recorder: FlightRecorder | None = None,
        **changes: Any,
    ) -> None:
        self.line = Line(dict.fromkeys(names))
        self.time = 1000.0
        self.stopping = threading.Event()
        self.loaded: list[str] = []
        for name, version in self.line.served.items():
            version.settings = ModelSettings(
                name=name, runtime=f"{HERE}:Sized", memory_gib=4000 / GIB, options={"name": name}, **changes
            )
        self.residents = Residents(
            list(self.line.served.values()),
            loader=Loader(
                store=self.line.store,
                device="cpu",
                meter=self.line.meter,
                on_loaded=self._on_loaded,
                recorder=recorder or FlightRecorder(None),
            ),
            holder=self.line.pipeline,
            store=self.line.store,
            room=room,
            host_room=lambda held: host_room,
            stopping=self.stopping,
            clock=lambda: self.time,
        )

    def _on_loaded(self, version: Any) -> None:
        self.loaded.append(version.settings.name)
        self.line.pipeline.inbox.changed.set()

    @property
    def there(self) -> list[str]:
        return [name for name, version in self.line.served.items() if version.model is not None]

    def look(self, *, seconds: float = 10.0) -> list[str]:
        self.time += seconds
        self.residents.look()
        return self.there

    def start(self) -> list[str]:
        """What is loaded at the start."""
        self.residents.preload()
        return self.there


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Yard]]:
    yards: list[Yard] = []

    def made(*names: str, **changes: Any) -> Yard:
        yards.append(Yard(*names, **changes))
        yards[-1].line.__enter__()
        return yards[-1]

    yield made
    for yard in yards:
        yard.line.__exit__()


def test_what_fits_is_loaded_at_the_start(make: Callable[..., Yard]) -> None:
    assert make("a", "b", "c").start() == ["a", "b"]


def test_models_of_sizes_that_nobody_declared_are_loaded_while_there_is_room(make: Callable[..., Yard]) -> None:
    yard = make("a", "b", "c", "d")
    for record in yard.residents._records.values():
        record.size = 0
    assert yard.start() == ["a", "b"]
    assert yard.loaded == ["a", "b", "c", "d"]  # what does not fit went again, and its size is known from now on
    assert yard.look() == ["a", "b"]
    assert yard.residents.memory()["predicted"] == 8000


def test_everything_is_loaded_where_it_fits_and_the_thread_ends(make: Callable[..., Yard]) -> None:
    yard = make("a", "b", "c", room=float("inf"))
    yard.residents.run()
    assert yard.loaded == ["a", "b", "c"]


def test_work_brings_its_model_and_sends_the_longest_unused_away(make: Callable[..., Yard]) -> None:
    yard = make("a", "b", "c")
    yard.start()
    yard.line.finish(yard.line.submit("a", [1]))
    ids = yard.line.submit("c", [1, 2, 3], tickets=False)
    yard.line.submit("a", [1], tickets=False)
    assert yard.look() == ["a", "c"]
    yard.line.ticket(yard.line.served["c"].queue_ids[next(iter(yard.line.served["c"].queue_ids))], ids)
    assert [value_of(view) for view in yard.line.finish(ids)] == [1, 2, 3]
    assert yard.line.meter.metrics.model_resident.labels("b@1")._value.get() == 0


def test_the_first_claim_is_told_for_it_ends_the_cold_start(make: Callable[..., Yard]) -> None:
    yard = make("a")

    def told() -> Any:
        return yard.line.meter.stats([], stages={})["first_claim_ms"]

    yard.start()
    assert told() is None
    before = yard.line.store.now_ms()
    yard.line.finish(yard.line.submit("a", [1]))
    first = told()
    assert before <= first <= yard.line.store.now_ms()
    yard.line.finish(yard.line.submit("a", [2]))
    assert told() == first


@pytest.mark.parametrize("stage", ["forward", "postprocess"])
def test_a_model_finishes_what_it_holds_before_it_leaves(
    make: Callable[..., Yard], monkeypatch: Any, stage: str
) -> None:
    yard = make("a", "b", room=4000)
    yard.start()
    gate, begun = threading.Event(), threading.Event()

    def wait(items: Any) -> Any:
        begun.set()
        assert gate.wait(20)
        return list(items)

    monkeypatch.setattr(yard.line.served["a"].model, stage, wait)
    ids = yard.line.submit("a", [1])
    assert begun.wait(20)
    yard.line.submit("b", [1], tickets=False)
    monkeypatch.setattr(residency, "PATIENCE_SECONDS", 0.0)
    mover = threading.Thread(target=yard.look)
    mover.start()
    until(lambda: yard.line.served["a"].is_leaving)
    late = yard.line.submit("a", [3])
    assert yard.there == ["a"]
    gate.set()
    mover.join()
    assert yard.there == ["b"]
    assert [view.state for view in yard.line.finish(ids)] == [State.SUCCEEDED]
    assert yard.line.store.get_jobs(late, tenant_id=1)[0].state is State.QUEUED


def test_a_copy_of_what_was_evicted_comes_back_without_a_load(make: Callable[..., Yard], monkeypatch: Any) -> None:
    monkeypatch.setattr(Sized, "loads", [])
    yard = make("a", "b", "c", room=4000, host_room=4096)
    yard.start()
    first = yard.line.served["a"].model
    assert isinstance(first, Sized)
    weights = first.weights
    weights += 7
    before = weights.data_ptr()

    def work(name: str) -> None:
        ids = yard.line.submit(name, [1], tickets=False)
        assert yard.look() == [name]
        yard.line.ticket(yard.line.served[name].queue_ids[Lane.FIRM], ids)
        assert [value_of(view) for view in yard.line.finish(ids)] == [1]

    work("b")
    assert weights.data_ptr() != before  # its memory of before is free
    work("a")
    assert yard.line.served["a"].model is first
    assert first.weights is weights
    assert set(weights.tolist()) == {7.0}
    assert Sized.loads == ["a", "b"]
    returned = yard.line.served["a"].return_seconds
    assert returned is not None
    assert yard.line.meter.metrics.model_return_seconds.labels("a@1")._value.get() == returned
    assert yard.residents._standing(yard.residents._records["b@1"]).load_seconds == yard.line.served["b"].load_seconds

    work("c")
    work("a")
    work("b")  # where a came back, there was no room for another copy beside its own
    assert Sized.loads == ["a", "b", "c", "b"]


def test_a_copy_that_does_not_come_back_is_loaded_anew(make: Callable[..., Yard], monkeypatch: Any) -> None:
    monkeypatch.setattr(Sized, "loads", [])
    yard = make("a", "b", room=4000, host_room=4096)
    yard.start()
    yard.line.submit("b", [1], tickets=False)
    assert yard.look() == ["b"]

    def lost(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("batchyard_consumers.loading.to_device", lost)
    yard.line.submit("a", [1], tickets=False)
    assert yard.look() == ["a"]
    assert Sized.loads == ["a", "b", "a"]


def test_warm_standby_a_model_without_work_is_loaded_and_its_first_job_waits_for_nothing(
    make: Callable[..., Yard],
) -> None:
    yard = make("a", "b", room=4000)
    served = yard.line.served
    served["b"].settings = ModelSettings(name="b", runtime=f"{HERE}:Sized", memory_gib=4000 / GIB, preload=False)
    assert yard.start() == ["a"]
    assert yard.look(seconds=10_000) == ["a"]
    yard.line.finish(yard.line.submit("a", [1]))

    ids = yard.line.submit("b", [1], tickets=False)
    assert yard.look() == ["b"]
    yard.line.ticket(served["b"].queue_ids[Lane.FIRM], ids)
    yard.line.finish(ids)
    assert yard.look() == ["b"]
    assert yard.look(seconds=residency.STAND_BY_SECONDS) == ["a"]  # nobody has work: who stands by is there again


def test_models_take_turns_until_all_work_is_done(make: Callable[..., Yard], monkeypatch: Any) -> None:
    monkeypatch.setattr(residency, "MIN_STAY_SECONDS", 0.0)
    yard = make("a", "b", "c", "d", room=4000)
    ids = [number for name in "abcd" for number in yard.line.submit(name, list(range(50)))]

    def is_done() -> bool:
        yard.look(seconds=1.0)
        return len(yard.line.store.finished_among(ids)) == len(ids)

    until(is_done)
    assert sorted(yard.loaded[:4]) == ["a", "b", "c", "d"]


def test_one_that_cannot_load_stops_no_other_and_is_tried_again(make: Callable[..., Yard]) -> None:
    yard = make("a", "b", room=float("inf"))
    broken = yard.line.served["a"]
    broken.settings = ModelSettings(name="a", runtime=f"{HERE}:Sized", options={"broken": True})
    yard.start()
    assert yard.there == ["b"]
    assert "no weights" in (yard.line.store.models()[0].load_error or "")
    broken.settings = ModelSettings(name="a", runtime=f"{HERE}:Sized")
    assert yard.look(seconds=1.0) == ["b"]
    assert yard.look(seconds=residents.FIRST_PAUSE_SECONDS) == ["a", "b"]


def test_one_that_ends_processes_while_it_loads_rests_and_stops_no_other(
    make: Callable[..., Yard], tmp_path: Path
) -> None:
    recorder = FlightRecorder(tmp_path)
    yard = make("a", "b", room=float("inf"), recorder=recorder)
    ends = flight_recorder._loads(tmp_path, yard.line.served["a"].version_id)
    ends.write_text("ended\nwas ended by SIGABRT\n")
    yard.start()
    assert yard.there == ["b"]
    reason = yard.line.store.models()[0].load_error or ""
    assert reason.startswith("a@1 cannot load: the process was ended by SIGABRT while it did, 2 times now; it is tried")
    assert yard.look(seconds=FIRST_REST_SECONDS) == ["a", "b"]
    assert not ends.exists()
    recorder.close()


def test_one_end_alone_may_have_had_any_reason(make: Callable[..., Yard], tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path)
    yard = make("a", room=float("inf"), recorder=recorder)
    flight_recorder._loads(tmp_path, yard.line.served["a"].version_id).write_text("ended\n")
    assert yard.start() == ["a"]
    recorder.close()


def test_pinned_models_stay_and_others_wait_for_work(make: Callable[..., Yard]) -> None:
    yard = make("a", "b", room=4000, pinned=True)
    assert yard.start() == ["a"]
    yard.line.submit("b", [1], tickets=False)
    assert yard.look(seconds=100) == ["a"]
    lazy = make("a", room=float("inf"), preload=False)
    lazy.residents.look()
    assert lazy.there == []
    lazy.line.submit("a", [1], tickets=False)
    assert lazy.look() == ["a"]


def test_one_that_never_fits_says_so(make: Callable[..., Yard]) -> None:
    yard = make("a", "b", room=4000)
    yard.residents._records["a@1"].size = 3 * GIB
    assert yard.start() == ["b"]
    assert "a@1 takes 3 GiB, and all models here may take" in (yard.line.store.models()[0].load_error or "")


def test_sizes_are_measured_and_before_that_declared() -> None:
    model = Sized()
    model.load("cpu")
    assert size_of(model) == 4000
    holder = Model()
    holder.network = torch.nn.Linear(10, 5)  # type: ignore[attr-defined]
    assert size_of(holder) == (50 + 5) * 4
    version = served()
    assert declared_size(version) == 0
    version.settings = ModelSettings(name="m", runtime="x:Y", memory_gib=2, gpu_memory_gib=1)
    assert declared_size(version) == GIB


def test_the_room_is_what_is_configured_or_all_of_a_cpu() -> None:
    assert room_on("cpu", PoolSettings(name="p", models=())) == float("inf")
    assert room_on("cpu", PoolSettings(name="p", models=(), memory_gib=2)) == 2 * GIB
