"""What a job and a bulk know about themselves, whichever client they belong to."""

from __future__ import annotations

from typing import Any

from batchyard import schemas
from batchyard.errors import JobError
from batchyard.jobs import State
from batchyard.sdk import calls


class JobFacts:
    """A job as it was last heard of. `data` has everything; the rest is what is asked for most."""

    def __init__(self, record: calls.JobRecord) -> None:
        self._record = record

    @property
    def data(self) -> schemas.Job:
        return self._record.job

    @property
    def id(self) -> str:
        return self._record.job.id

    @property
    def model(self) -> str:
        """`model@version`: a bare name has been resolved."""
        return self._record.job.model

    @property
    def state(self) -> str:
        """ "queued", "running", "waiting", "succeeded", "failed", "cancelled" or "expired"."""
        return self._record.job.state

    @property
    def done(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self._record.is_finished

    @property
    def custom_id(self) -> str | None:
        return self._record.job.custom_id

    @property
    def position(self) -> int | None:
        """Queued jobs that go before it: exact to 1,000, then about."""
        return self._record.job.position

    @property
    def eta_seconds(self) -> float | None:
        """Until it is finished, as far as its queue's speed is known."""
        return self._record.job.eta_seconds

    @property
    def partial(self) -> Any:
        """What its model has made so far, while it runs and where the model tells; else None."""
        return self._record.partial()

    @property
    def waits_because(self) -> str | None:
        """Why it is not running yet, in words."""
        reason = self._record.job.waits_because
        return None if reason is None else reason.message

    def result_json(self) -> bytes:
        """The result as JSON text, tensors as numbers; raises as `result` does. Asks nobody."""
        return self._record.value_json()

    @property
    def error(self) -> JobError | None:
        """Why it ended without a result; None otherwise."""
        if not self.done or self.state == "succeeded":
            return None
        job = self._record.job
        index = job.index if job.bulk_id is not None else None
        return calls.error_of(State[job.state.upper()], job.error, job_id=job.id, index=index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.model} {self.state}>"


class BulkFacts:
    """A bulk as it was last heard of. `data` has everything."""

    def __init__(self, data: schemas.Bulk) -> None:
        self.data = data

    @property
    def id(self) -> str:
        return self.data.id

    @property
    def jobs(self) -> int:
        """Accepted so far: the index of the next job."""
        return self.data.jobs

    @property
    def counts(self) -> dict[schemas.StateWord, int]:
        """Jobs by state; states without jobs are left out."""
        return self.data.counts

    @property
    def finished(self) -> bool:
        """Sealed, and every job ended."""
        return self.data.finished

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.data.model}: {self.jobs} jobs>"
