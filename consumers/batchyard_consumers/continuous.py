"""Continuous models: each has a thread that keeps it full, takes out what has ended, and lets the next ones in."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import torch

from batchyard.errors import Unavailable
from batchyard.jobs import ClaimedJob, ErrorInfo, Outcome, State
from batchyard.model import ContinuousModel
from batchyard_consumers.channels import Channel, Closed
from batchyard_consumers.device import Running
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import FailureLog, caught, is_out_of_memory, loses_device
from batchyard_consumers.held import Batch, Finished
from batchyard_consumers.items import Items
from batchyard_consumers.meter import Meter
from batchyard_consumers.pools import Pools
from batchyard_consumers.served import Served

TELL_SECONDS = 1.0
"""Between two notes of what the jobs inside have come to so far."""
LEARN_SECONDS = 0.5
"""Of stepping, after which the speed learns from what has ended meanwhile."""


class Failing(Protocol):
    """Where a job goes that failed, and who is told of a device that was lost; see `Device`."""

    def fail(self, batch: Batch, error: Exception) -> None: ...

    def lost(self, owner: int, jobs: Sequence[ClaimedJob], error: Exception) -> None: ...


class Tell(Protocol):
    """See `JobStore.report_progress`."""

    def __call__(self, notes: Sequence[tuple[ClaimedJob, bytes]], *, owner: int) -> None: ...


class Teller(ThreadPoolExecutor):
    """One thread, and whether it is through with what it was given."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="batchyard-tell")

    @property
    def is_free(self) -> bool:
        return self._work_queue.empty()


@dataclass(slots=True, eq=False)
class Inside:
    """A job that the model holds."""

    batch: Batch
    """Of this job alone; its `seconds` are the job's part of the steps so far."""
    joined_at: float
    told: bytes = b""
    """What was last told of it."""


class Continuous:
    """One version's loop; `run` is the body of its thread. `running` and `cancel` are any thread's."""

    def __init__(
        self,
        served: Served,
        *,
        pools: Pools,
        outputs: Channel[Batch],
        finished: Channel[Finished],
        device: Failing,
        items: Items,
        executing: Executing,
        meter: Meter,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert isinstance(served.model, ContinuousModel)
        self.served = served
        self._model = served.model
        self._pools = pools
        self._outputs = outputs
        self._finished = finished
        self._device = device
        self._items = items
        self._executing = executing
        self._meter = meter
        self._tell = tell
        self._told_at = -math.inf
        self._teller = Teller() if type(self._model).partial is not ContinuousModel.partial else None
        self._clock = clock
        self._failures = FailureLog()
        self._inside: dict[int, Inside] = {}
        self._keys = 0
        self._again: deque[Batch] = deque()
        """Had to leave because a step failed, and join before anybody else."""
        self._most = self._model.most_jobs
        """How many may be inside: fewer after a step that failed, more again with every job that succeeds."""
        self._step_began: float | None = None
        self._cancelled: set[int] = set()
        self._lock = threading.Lock()
        """Of `_cancelled`."""
        self._unlearned = (0, 0, 0.0)
        """Jobs, cost and seconds of stepping since the speed last learned."""

    @property
    def running(self) -> list[Running]:
        """The jobs inside; the time is that of the step in hand, so that a step without end is noticed."""
        since = self._step_began if self._step_began is not None else self._clock()
        return [Running(batch=one.batch, since=since, predicted_seconds=None) for one in list(self._inside.values())]

    def cancel(self, ids: frozenset[int]) -> None:
        """Those of these jobs that are inside leave before the next step."""
        with self._lock:
            self._cancelled |= ids & {one.batch.jobs[0].id for one in list(self._inside.values())}

    def run(self) -> None:
        """Go on until the pools are closed and nothing is inside (raises Closed)."""
        try:
            while True:
                self._round()
        finally:
            if self._teller is not None:
                self._teller.shutdown()
            try:
                self._model.close()
            except BaseException as error:  # noqa: BLE001  a model may raise anything; what it computed is written
                self._failures.note(model=self.served.name, stage="close", error=error)

    def _round(self) -> None:
        try:
            self._let_in()
        except Closed:
            if not self._inside and not self._again:
                raise
        self._let_out_unwanted()
        if self._inside:
            self._step()
            self._tell_of_progress()

    def _let_in(self) -> None:
        while self._again and self._has_room_for(self._again[0]):
            self._join(self._again.popleft())
        if self._again or any(one.batch.jobs[0].suspect for one in self._inside.values()):
            return
        room = self._most - len(self._inside)
        if room > 0:
            for batch in self._pools.joiners(self.served, most=room, may_wait=not self._inside):
                if self._has_room_for(batch):
                    self._join(batch)
                else:
                    self._again.append(batch)

    def _has_room_for(self, batch: Batch) -> bool:
        """A suspect has the model to itself."""
        return not self._inside if batch.jobs[0].suspect else len(self._inside) < self._most

    def _join(self, batch: Batch) -> None:
        if batch.is_split:
            with self._executing.of(batch.owner, batch.jobs):
                [item] = self._items.of(batch.served, batch.jobs, model=batch.model)
            if isinstance(item, Exception):
                self._device.fail(batch, item)
                return
            batch.items = [item]
        self._keys += 1
        self._inside[self._keys] = Inside(batch, self._clock())
        try:
            with self._executing.of(batch.owner, batch.jobs):
                self._model.join(self._keys, batch.items[0])
        except BaseException as error:  # noqa: BLE001  a model may raise anything; it fails this job
            self._failures.note(model=self.served.name, stage="join", error=error)
            self._end(self._keys, caught(error))

    def _let_out_unwanted(self) -> None:
        """Cancelled jobs, and those that have been inside for too long."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
        limit = self.served.settings.max_run_seconds
        for key, one in list(self._inside.items()):
            job = one.batch.jobs[0]
            if job.id in cancelled:
                self._finish(key, Outcome(job, State.CANCELLED))
            elif self._clock() - one.joined_at > limit:
                error = ErrorInfo(code="timeout", message=f"the model ran for more than {limit:g} seconds")
                self._finish(key, Outcome(job, State.FAILED, error=error))

    def _finish(self, key: int, outcome: Outcome) -> None:
        batch = self._inside.pop(key).batch
        self._leave(key)
        self._meter.finished(self.served, outcome.state, 1)
        outcome = msgspec.structs.replace(outcome, cost=batch.cost, device_us=batch.device_us()[0])
        self._finished.put(Finished(owner=batch.owner, outcomes=[outcome]))

    def _leave(self, key: int) -> None:
        """Whatever the model makes of it, the job is not inside any more."""
        try:
            self._model.leave(key)
        except BaseException as error:  # noqa: BLE001  a model may raise anything; it ends no stage
            self._failures.note(model=self.served.name, stage="leave", error=error)

    def _step(self) -> None:
        inside = list(self._inside.values())
        newest = inside[-1].batch.owner
        jobs = [one.batch.jobs[0] for one in inside if one.batch.owner == newest]
        with self._executing.of(newest, jobs):
            began = self._step_began = self._clock()
            ended, failure = self._advance()
        seconds = self._clock() - began
        self._step_began = None
        self._meter.stepped(self.served, jobs=len(inside), seconds=seconds)
        for one in inside:
            one.batch.seconds += seconds / len(inside)
        if failure is not None and loses_device(failure):
            self._inside.clear()
            self._device.lost(newest, jobs, failure)
            raise Closed
        if failure is not None:
            self._scatter(failure)
        for key, output in ended:
            if key in self._inside:
                self._end(key, output)
        self._learn(seconds)

    def _advance(self) -> tuple[Sequence[tuple[int, Any]], Exception | None]:
        try:
            with torch.inference_mode():
                return [(key, output) for key, output in self._model.step() if key in self._inside], None
        except BaseException as error:  # noqa: BLE001  a model may raise anything; it fails jobs, not the stage
            self._failures.note(model=self.served.name, stage="step", error=error)
            failure = caught(error)
            return [], failure.with_traceback(None) if is_out_of_memory(failure) else failure

    def _scatter(self, failure: Exception) -> None:
        """A step failed: alone, a job is to blame; several try again in half the company."""
        keys = list(self._inside)
        if len(keys) == 1:
            self._leave(keys[0])
            self._end(keys[0], failure)
            return
        for key in keys:
            self._leave(key)
        # As parts of a batch that failed: their items are made anew, for the step may have changed them.
        self._again.extendleft(reversed([self._inside.pop(key).batch.part([0]) for key in keys]))
        self._most = max(1, len(keys) // 2)
        self._meter.metrics.batch_splits.labels(self.served.name, "failure").inc()

    def _end(self, key: int, output: Any) -> None:
        """A job has left with its output, or with an exception."""
        batch = self._inside.pop(key).batch
        if isinstance(output, BaseException):
            self._device.fail(batch, caught(output))
            return
        try:
            batch.costs = self.served.costs(batch.items)
        except BaseException as error:  # noqa: BLE001  as in a step
            self._device.fail(batch, caught(error))
            return
        self._most = min(self._model.most_jobs, self._most + 1)
        batch.outputs = [output]
        batch.cost = batch.padded_cost = batch.costs[0]
        jobs, cost, seconds = self._unlearned
        self._unlearned = (jobs + 1, cost + batch.cost, seconds)
        self._meter.metrics.batch_cost.labels(self.served.name, "useful").inc(batch.cost)
        self._outputs.put(batch)

    def _tell_of_progress(self) -> None:
        """Now and then, and by another thread: the database may be slow."""
        if self._teller is None or not self._teller.is_free or self._clock() - self._told_at < TELL_SECONDS:
            return
        self._told_at = self._clock()
        news: dict[int, list[tuple[ClaimedJob, bytes]]] = {}
        for one in self._inside.values():
            body = self._partial(one.batch.items[0])
            if body and body != one.told:
                one.told = body
                news.setdefault(one.batch.owner, []).append((one.batch.jobs[0], body))
        for owner, notes in news.items():
            self._teller.submit(self._note, notes, owner)

    def _partial(self, item: Any) -> bytes:
        """What a reader may see of an item now; empty where there is nothing to see, or it cannot be shown."""
        try:
            partial = self._model.partial(item)
            return b"" if partial is None else msgspec.json.encode(partial)
        except BaseException as error:  # noqa: BLE001  a model may raise anything; nobody is harmed by less to see
            self._failures.note(model=self.served.name, stage="partial", error=error)
            return b""

    def _note(self, notes: Sequence[tuple[ClaimedJob, bytes]], owner: int) -> None:
        with suppress(Unavailable):  # the next note says more
            self._tell(notes, owner=owner)

    def _learn(self, seconds: float) -> None:
        jobs, cost, so_far = self._unlearned
        self._unlearned = (jobs, cost, so_far + seconds)
        if jobs and so_far + seconds >= LEARN_SECONDS:
            self.served.speed.observe(padded_cost=cost, cost=cost, jobs=jobs, seconds=so_far + seconds)
            self._unlearned = (0, 0, 0.0)
