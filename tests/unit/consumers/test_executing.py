"""What executes is written down, and a suspect has the process to itself."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from batchyard.errors import Unavailable
from batchyard.flight_recorder import Flight, FlightRecorder
from batchyard.jobs import ClaimedJob
from batchyard.model import Model
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard_consumers.executing import Executing, open_recorder
from tests.unit.consumers.jobs import claimed
from tests.unit.consumers.line import Line, until, value_of

OWNER = 7


class Notes:
    """The one method of a store that matters here."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, int | None]] = []
        self.is_away = False

    def note_solo(self, owner: int, *, job_id: int | None) -> None:
        if self.is_away:
            raise Unavailable("away")
        self.noted.append((owner, job_id))


class Stage:
    """A thread inside `of`, until it is let out."""

    def __init__(self, executing: Executing, *jobs: ClaimedJob) -> None:
        self.entered, self.left = threading.Event(), threading.Event()
        self._go = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(executing, jobs))
        self._thread.start()

    def _run(self, executing: Executing, jobs: Sequence[ClaimedJob]) -> None:
        with executing.of(OWNER, jobs):
            self.entered.set()
            assert self._go.wait(20)
        self.left.set()

    def leave(self) -> None:
        self._go.set()
        self._thread.join(20)
        assert self.left.is_set()


def made() -> tuple[Executing, FlightRecorder, Notes]:
    notes, recorder = Notes(), FlightRecorder(None)
    return Executing(cast("JobStore", notes), recorder), recorder, notes


def suspect(number: int) -> ClaimedJob:
    return claimed(number, suspect=True)


def waits(executing: Executing, count: int) -> Callable[[], bool]:
    return lambda: executing._suspects_waiting == count


def test_stages_run_beside_each_other_and_stand_in_the_record() -> None:
    executing, recorder, notes = made()
    first, second = Stage(executing, claimed(1), claimed(2)), Stage(executing, claimed(3))
    assert first.entered.wait(20)
    assert second.entered.wait(20)
    assert sorted(recorder.read().executing) == [1, 2, 3]
    first.leave()
    assert recorder.read() == Flight([OWNER], [3])
    second.leave()
    assert recorder.read() == Flight([], [])
    assert notes.noted == []


def test_what_raises_has_left_the_record() -> None:
    executing, recorder, _ = made()
    try:
        with executing.of(OWNER, [claimed(1)]):
            raise ValueError("as a model may")
    except ValueError:
        pass
    assert recorder.read() == Flight([], [])


def test_a_suspect_waits_for_the_others_and_keeps_new_ones_out() -> None:
    executing, recorder, notes = made()
    before = Stage(executing, claimed(1))
    assert before.entered.wait(20)
    alone = Stage(executing, suspect(2))
    until(waits(executing, 1))
    after = Stage(executing, claimed(3))
    assert not alone.entered.is_set()
    before.leave()
    assert alone.entered.wait(20)
    assert recorder.read() == Flight([OWNER], [2])
    assert notes.noted == [(OWNER, 2)]
    assert not after.entered.wait(0.05)
    alone.leave()
    assert after.entered.wait(20)
    assert notes.noted == [(OWNER, 2), (OWNER, None)]
    after.leave()


def test_suspects_take_turns_and_are_noted_once_through_all_stages() -> None:
    executing, recorder, notes = made()
    first, second = Stage(executing, suspect(1)), Stage(executing, suspect(2))
    until(lambda: len(recorder.read().executing) == 1)
    assert first.entered.is_set() != second.entered.is_set()
    for stage in (first, second) if first.entered.is_set() else (second, first):
        assert stage.entered.wait(20)
        assert len(recorder.read().executing) == 1
        stage.leave()
    noted = len(notes.noted)
    last = notes.noted[-1][1]
    assert (noted, last in {1, 2}) == (2, True)
    for _ in range(3):
        Stage(executing, suspect(last or 0)).leave()
    assert len(notes.noted) == noted


def test_a_database_that_is_away_stops_nobody_and_is_told_later() -> None:
    executing, _, notes = made()
    notes.is_away = True
    Stage(executing, suspect(1)).leave()
    notes.is_away = False
    Stage(executing, suspect(1)).leave()
    assert notes.noted == [(OWNER, 1)]
    notes.is_away = True
    Stage(executing, claimed(2)).leave()
    notes.is_away = False
    Stage(executing, claimed(2)).leave()
    assert notes.noted == [(OWNER, 1), (OWNER, None)]


def test_suspects_pass_the_whole_line_one_by_one() -> None:
    seen: list[tuple[str, list[int]]] = []
    recorded: list[tuple[str, list[int], int]] = []

    def look(stage: str, values: Sequence[Any]) -> Sequence[Any]:
        executing = line.pipeline.executing._recorder.read().executing
        seen.append((stage, list(values)))
        recorded.append((stage, [value for value in values if ids[value] in executing], len(executing)))
        return values

    class Watched(Model):
        def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
            return look("preprocess", inputs)

        def forward(self, items: Sequence[Any]) -> Any:
            return look("forward", items)

        def postprocess(self, outputs: Any) -> Sequence[Any]:
            return look("postprocess", outputs)

    with Line({"watched": Watched()}) as line:
        ids = line.submit("watched", list(range(20)), tickets=False)
        jobs = line.claim(ids, queue_id=line.served["watched"].queue_ids[next(iter(line.served["watched"].queue_ids))])
        line.store.release(jobs[:3], owner=line.owner, suspect=True)
        line.store.release(jobs[3:], owner=line.owner)
        line.ticket(jobs[0].queue_id, ids)
        assert [value_of(view) for view in line.finish(ids)] == list(range(20))
    assert [(stage, values) for stage, values, _ in recorded] == seen
    assert {count for _, values, count in recorded if set(values) & {0, 1, 2}} == {1}
    for stage in ("preprocess", "forward", "postprocess"):
        with_suspects = [values for name, values in seen if name == stage and set(values) & {0, 1, 2}]
        assert sorted(with_suspects) == [[0], [1], [2]]
        assert max(len(values) for name, values in seen if name == stage) > 1


def test_a_folder_that_takes_no_record_costs_the_record_alone(tmp_path: Path) -> None:
    (tmp_path / "flights").write_text("in the way")
    recorder = open_recorder(Settings(state_dir=tmp_path), cast("JobStore", Notes()))
    recorder.begin(0, owner=1, ids=[1])
    assert recorder.read() == Flight([1], [1])
