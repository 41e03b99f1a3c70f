"""What this process is executing now, written down for the case that it dies of it; and suspects run alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from batchyard.errors import Unavailable
from batchyard.flight_recorder import SLOTS, FlightRecorder, flights_of, tell_of_deaths
from batchyard.jobs import ClaimedJob
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event

log = logging.getLogger(__name__)


class Task(NamedTuple):
    """What one thread does now."""

    owner: int
    jobs: Sequence[ClaimedJob]
    since: float
    """time.monotonic()."""


class Executing:
    """Every stage runs a model's code inside `of`. Thread-safe; a thread runs one thing at a time.

    While a suspect is inside, nobody else is, so that there is no doubt about whose fault the end of the process is.
    """

    def __init__(
        self, store: JobStore, recorder: FlightRecorder, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._clock = clock
        self._tasks: dict[int, Task] = {}
        """By slot of the record."""
        self._free = list(range(SLOTS))
        """Slots that nobody has. Guarded, as all of what follows, by `_turn`."""
        self._turn = threading.Condition()
        self._inside = 0
        self._alone = False
        """A suspect is inside."""
        self._suspects_waiting = 0
        """They go first: otherwise stages that are never idle at once would keep them out for ever."""
        self._noted: tuple[int, int] | None = None
        """Owner and job of the last `note_solo`."""

    def registered(self, owner: int) -> None:
        """Under whose name jobs are claimed from now on."""
        self._recorder.registered(owner)

    def close(self) -> None:
        """The process ends in order."""
        self._recorder.close()

    @contextmanager
    def of(self, owner: int, jobs: Sequence[ClaimedJob]) -> Iterator[None]:
        """Around a model's code. A suspect comes by itself; wait for its turn."""
        is_suspect = len(jobs) == 1 and jobs[0].suspect
        slot = self._enter(owner, jobs[0].id if is_suspect else None)
        self._recorder.begin(slot, owner=owner, ids=[job.id for job in jobs])
        self._tasks[slot] = Task(owner, jobs, self._clock())
        try:
            yield
        finally:
            del self._tasks[slot]
            self._recorder.end(slot)
            self._leave(slot)

    @property
    def tasks(self) -> list[Task]:
        """What is executed now; any thread."""
        return list(self._tasks.values())

    def _enter(self, owner: int, suspect: int | None) -> int:
        """Wait for the turn; returns a slot of the record."""
        with self._turn:
            if suspect is None:
                while self._alone or self._suspects_waiting or not self._free:
                    self._turn.wait()
                if self._noted is not None:
                    self._note(None)
            else:
                self._suspects_waiting += 1
                try:
                    while self._inside:
                        self._turn.wait()
                finally:
                    self._suspects_waiting -= 1
                if self._noted != (owner, suspect):
                    self._note((owner, suspect))
                self._alone = True
            self._inside += 1
            return self._free.pop()

    def _leave(self, slot: int) -> None:
        with self._turn:
            self._free.append(slot)
            self._inside -= 1
            self._alone = False
            if not self._inside or len(self._free) == 1:
                self._turn.notify_all()

    def _note(self, noted: tuple[int, int] | None) -> None:
        """Tell the database, for the case that nobody is left to read the record."""
        owner = (noted or self._noted or (0, 0))[0]
        try:
            self._store.note_solo(owner, job_id=None if noted is None else noted[1])
            self._noted = noted
        except Unavailable as away:
            log_event(log, "suspect_not_noted", level=logging.WARNING, reason=away.message)


def open_recorder(settings: Settings, store: JobStore) -> FlightRecorder:
    """This process's record in the state folder, after what those before it left there has been told.

    Where there is no writing to the folder nothing outlives the process, and deaths stay unexplained.
    """
    folder = flights_of(settings)
    try:
        buried = tell_of_deaths(folder, store)
        if buried:
            log_event(log, "deaths_told", consumers=buried)
        return FlightRecorder(folder)
    except (OSError, Unavailable) as error:
        log_event(log, "no_flight_recorder", level=logging.WARNING, folder=str(folder), reason=str(error))
        return FlightRecorder(None)
