"""One thread writes outcomes: everything at hand whenever the writer is free, then a hint to whoever waits."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from batchyard.errors import BadOutput, Unavailable
from batchyard.jobs import ErrorInfo, Outcome, State
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.channels import Channel, Closed
from batchyard_consumers.held import Finished, Holding
from batchyard_consumers.meter import Meter

MAX_ROWS = 2000
"""Of one transaction."""
MAX_BYTES = 32 * 1024 * 1024
"""Of results in one transaction; a single chunk may be larger."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0
"""Between two attempts while the database is away."""

log = logging.getLogger(__name__)


class Persister:
    """The last stage; `run` is the body of its thread.

    While the database is away what is finished is kept and tried again: the channel before it is bounded, so that the
    device stops in time, and every write is fenced, so that a late one harms nothing.
    """

    def __init__(
        self,
        *,
        store: JobStore,
        finished: Channel[Finished],
        holding: Holding,
        meter: Meter,
        hint: Callable[[Sequence[int]], None],
        hurry: threading.Event,
    ) -> None:
        self._store = store
        self._finished = finished
        self._holding = holding
        self._meter = meter
        self._hint = hint
        self._hurry = hurry
        self.pending_jobs = 0
        """Outcomes in hand that are not written yet."""

    def run(self) -> None:
        """Write until the channel is closed and empty (raises Closed)."""
        while True:
            first = self._finished.take()
            if first is not None:
                self._write([first, *self._finished.take_more(MAX_ROWS - len(first.outcomes))])

    def _write(self, chunks: Sequence[Finished]) -> None:
        for owner in dict.fromkeys(chunk.owner for chunk in chunks):
            outcomes: list[Outcome] = []
            for chunk in chunks:
                if chunk.owner == owner:
                    outcomes += chunk.outcomes
            for part in _parts(outcomes):
                self.pending_jobs = len(part)
                try:
                    self._write_part(part, owner=owner)
                finally:
                    self.pending_jobs = 0
                    self._holding.let_go(len(part))

    def _write_part(self, outcomes: Sequence[Outcome], *, owner: int) -> None:
        started = time.perf_counter()
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                written = self._finish(outcomes, owner=owner)
                break
            except Unavailable as away:
                log_event(
                    log, "results_kept", level=logging.WARNING, jobs=len(outcomes), reason=away.message, retry_in=pause
                )
            if self._hurry.wait(pause):
                # The grace is over: the lease runs out and the jobs run again elsewhere.
                log_event(log, "results_given_up", level=logging.ERROR, jobs=len(outcomes))
                raise Closed
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        self._meter.persisted(outcomes, seconds=time.perf_counter() - started)
        self._tell(outcomes, written)

    def _finish(self, outcomes: Sequence[Outcome], *, owner: int) -> list[int]:
        """Write them; a result that the database does not take (it has its limits) fails its own job. Unavailable."""
        try:
            return self._store.finish(outcomes, owner=owner)
        except Unavailable:
            raise
        except Exception as error:
            if len(outcomes) == 1 and outcomes[0].state is not State.SUCCEEDED:
                raise
            refused = error
        if len(outcomes) > 1:
            middle = len(outcomes) // 2
            return [*self._finish(outcomes[:middle], owner=owner), *self._finish(outcomes[middle:], owner=owner)]
        log_event(log, "result_refused", level=logging.ERROR, job=outcomes[0].job.id, error=refused)
        told = ErrorInfo(code=BadOutput.code, message="the database does not take the result: it may be too large")
        failed = Outcome(outcomes[0].job, State.FAILED, error=told, device_us=outcomes[0].device_us)
        return self._store.finish([failed], owner=owner)

    def _tell(self, outcomes: Sequence[Outcome], written: Sequence[int]) -> None:
        if State.WAITING in [outcome.state for outcome in outcomes]:
            waiting = {outcome.job.id for outcome in outcomes if outcome.state is State.WAITING}
            written = [job_id for job_id in written if job_id not in waiting]
        if written:
            self._hint(written)


def _parts(outcomes: list[Outcome]) -> Iterable[Sequence[Outcome]]:
    """Cut where a transaction would grow beyond its rows or bytes."""
    if len(outcomes) <= MAX_ROWS and sum([len(outcome.body or b"") for outcome in outcomes]) <= MAX_BYTES:
        yield outcomes
        return
    start = size = 0
    for place, outcome in enumerate(outcomes):
        size += len(outcome.body or b"")
        if place > start and (place - start >= MAX_ROWS or size > MAX_BYTES):
            yield outcomes[start:place]
            start, size = place, len(outcome.body or b"")
    yield outcomes[start:]
