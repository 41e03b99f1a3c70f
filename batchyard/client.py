"""The SDK: `Client`, its jobs and its bulks.

`batchyard.aclient` is the same for asyncio. Neither holds logic: each call is steps of `batchyard.sdk`, performed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Literal, TypeVar, Unpack

from batchyard import schemas
from batchyard.sdk import calls, redriving
from batchyard.sdk.calls import Options, Which
from batchyard.sdk.facts import BulkFacts, JobFacts
from batchyard.sdk.http import Endpoint, Http, Transport, drive, perform
from batchyard.sdk.mapping import MAX_IN_FLIGHT, Results, map_chunk_size, prepare
from batchyard.sdk.reading import Result
from batchyard.sdk.steps import Patience, Steps
from batchyard.sdk.webhooks import Webhooks

__all__ = ["Bulk", "Client", "Job", "Options", "Result", "Results"]

T = TypeVar("T")


class Client:
    """Submits jobs and reads what became of them. Thread-safe; close it, or use it in a `with`.

    `url` defaults to BATCHYARD_URL, then to http://127.0.0.1:8080; `api_key` to BATCHYARD_API_KEY. `timeout` is that of
    one answer, in seconds, long polls apart. A call that meets an API that is away is tried again for `retry_seconds`;
    waiting and `map` have more patience. Submissions carry an idempotency key, so a repeated one never doubles.

    Every failure is an error of `batchyard.errors`, with a stable `code` and `retryable`.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout: float = 30.0, retry_seconds: float = 10.0
    ) -> None:
        self._transport: Transport = Http(Endpoint(url, api_key=api_key, timeout_seconds=timeout))
        self._retry_seconds = retry_seconds

    @classmethod
    def direct(
        cls,
        *,
        database: str | None = None,
        broker: str | None = None,
        config: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> Client:
        """A client without the HTTP hop: it validates, commits and tickets in this process, as the default tenant.

        `database` and `broker` are URLs; what is not given comes from the configuration. Needs the extra "producer".
        """
        from batchyard.sdk.direct import Direct

        client = cls.__new__(cls)
        client._transport = Direct.open(database=database, broker=broker, config=config, state=state)
        client._retry_seconds = 10.0
        return client

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs ---

    def submit(
        self,
        model: str,
        input: Any,  # noqa: A002  the API's word
        *,
        custom_id: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Submit one input, anything that has a JSON form. Committed when this returns."""
        steps = calls.submit(
            model,
            input,
            custom_id=custom_id,
            idempotency_key=idempotency_key,
            options=options,
            patience=self._patience(),
        )
        return Job(self, self._run(steps))

    def submit_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        custom_ids: Sequence[str | None] | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> list[Job]:
        """Submit up to 10,000 inputs in one call, all or nothing; one job each, in order. For more there is `map`."""
        steps = calls.submit_many(
            model,
            list(inputs),
            custom_ids=custom_ids,
            idempotency_key=idempotency_key,
            options=options,
            patience=self._patience(),
        )
        return [Job(self, record) for record in self._run(steps)]

    def get(self, job_id: str, *, wait: float = 0.0) -> Job:
        """The job with its result or error; with `wait`, once it has ended or so many seconds have passed."""
        return Job(self, self._run(calls.get_job(job_id, wait_seconds=wait, patience=self._patience())))

    def lookup(self, ids: Iterable[str | Job], *, wait: float = 0.0, until: Literal["any", "all"] = "all") -> list[Job]:
        """Many jobs, in the order asked for; with `wait`, once any or all have ended or the seconds have passed."""
        wanted = [job.id if isinstance(job, Job) else job for job in ids]
        steps = calls.lookup(wanted, wait_seconds=wait, until=until, patience=self._patience())
        return [Job(self, record) for record in self._run(steps)]

    def jobs(self, *, page_size: int = 100, **which: Unpack[Which]) -> Iterator[Job]:
        """All jobs that match, newest first, fetched page by page. Those that failed have their `data.error`."""
        after = None
        while True:
            steps = calls.list_page(which=which, after=after, limit=page_size, patience=self._patience())
            records, after = self._run(steps)
            yield from (Job(self, record) for record in records)
            if after is None:
                return

    def redrive(
        self,
        ids: Iterable[str | Job] | None = None,
        *,
        to: str | None = None,
        dry_run: bool = False,
        **which: Unpack[Which],
    ) -> list[schemas.Redriven]:
        """Submit jobs that ended without a result once more, for their own versions or for another: those of the ids,
        or all that match, failed ones where no other state is given. What became of each is said, in that order or the
        newest first.

        A job is redriven once: what had been before is answered as it was, so an interrupted call may be repeated. A
        full queue is waited for. `dry_run` only says what would be done.
        """
        wanted = None if ids is None else [job.id if isinstance(job, Job) else job for job in ids]
        patience = Patience(self._retry_seconds, through_full=True)
        return self._run(redriving.redrive(wanted, which=which, to=to, dry_run=dry_run, patience=patience))

    # --- many jobs ---

    def map(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        key: str | None = None,
        ordered: bool = False,
        errors: Literal["raise", "yield"] = "raise",
        progress: bool | str = False,
        after: int = 0,
        chunk_size: int | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        **options: Unpack[Options],
    ) -> Results:
        """Run every input of an iterable of any length; iterate the answer for the results, which come meanwhile.

        Results come as they complete, each with its `index`, or with `ordered` in the order of the inputs. `errors`
        "raise" raises at a failed one (iterate on for the rest); "yield" hands it out with its `error`, and lets inputs
        that do not fit the model fail one by one instead of refusing them. The inputs are taken in another thread, in
        chunks, and memory stays bounded: at most `max_in_flight` are accepted without their results having been read,
        or with `ordered` handed out. So many results at most, and 256 MiB of them, wait here for an earlier one;
        meanwhile nothing more is fed, and what else has ended waits where it is stored.

        A map that was interrupted, here or there, goes on where it stopped when it is called again with the same `key`,
        inputs and options; results then come from the first, or from `after` (an earlier run's `cursor`, in the same
        order) on. The key of a map that was given none is `Results.key`. Where an input's job is no longer kept by
        then, its place in the order has the error JobRetired, and in the order of completion it is left out.
        """
        key = key or calls.new_key()
        bulk = self._run(
            calls.create_bulk(
                model,
                key=key,
                chunk_size=map_chunk_size(chunk_size, max_in_flight),
                validate=errors == "raise",
                options=options,
                patience=self._patience(),
            )
        )
        flow, handing = prepare(
            bulk,
            total=len(inputs) if isinstance(inputs, Sized) else None,
            after=after,
            ordered=ordered,
            raises=errors == "raise",
            max_in_flight=max_in_flight,
            progress=progress,
            retry_seconds=self._retry_seconds,
        )
        return Results(self._transport, inputs, key=key, flow=flow, handing=handing)

    def bulk(
        self,
        model: str | None = None,
        *,
        id: str | None = None,  # noqa: A002  the API's word
        key: str | None = None,
        chunk_size: int | None = None,
        validate: bool = True,
        **options: Unpack[Options],
    ) -> Bulk:
        """A new bulk of `model`, or the one that `key` made; with `id`, that one. `map` does all of this by itself."""
        if id is not None:
            return Bulk(self, self._run(calls.get_bulk(id, patience=self._patience())))
        if model is None:
            raise TypeError("bulk() needs the model of a new bulk, or the id of one")
        steps = calls.create_bulk(
            model,
            key=key or calls.new_key(),
            chunk_size=chunk_size,
            validate=validate,
            options=options,
            patience=self._patience(),
        )
        return Bulk(self, self._run(steps))

    def upload(self, content: bytes, content_type: str = "application/octet-stream") -> dict[str, str]:
        """Keep bytes (an image, audio, a large text) for use inside inputs; returns what stands for them there."""
        return self._run(calls.upload(content, content_type=content_type, patience=self._patience()))

    @property
    def webhooks(self) -> Webhooks:
        """The endpoints that hear when jobs and bulks of this tenant end. Needs a key with the scope "webhooks"."""
        return Webhooks(self._run, self._patience)

    # --- models ---

    def models(self) -> list[schemas.Model]:
        """Every model with its versions, schemas and backlog."""
        return self._run(calls.models(patience=self._patience()))

    def model(self, name: str) -> schemas.Model:
        return self._run(calls.model(name, patience=self._patience()))

    def pause(self, model: str, *, lane: schemas.LaneWord | None = None) -> schemas.Model:
        """Hold back a model's queued jobs, in one lane or in both; what runs goes on, and submissions are taken."""
        return self._run(calls.set_paused(model, paused=True, lane=lane, patience=self._patience()))

    def resume(self, model: str, *, lane: schemas.LaneWord | None = None) -> schemas.Model:
        """Let its queued jobs run again."""
        return self._run(calls.set_paused(model, paused=False, lane=lane, patience=self._patience()))

    def pools(self) -> list[schemas.Pool]:
        """Every pool with its consumers."""
        return self._run(calls.pools(patience=self._patience()))

    def pin_pool(self, name: str, *, replicas: int) -> schemas.Pool:
        """Fix the number of a pool's consumers by hand, at most its max."""
        return self._run(calls.pin_pool(name, replicas=replicas, patience=self._patience()))

    def unpin_pool(self, name: str) -> schemas.Pool:
        """Let the scaler decide again."""
        return self._run(calls.steer_pool(name, "unpin", patience=self._patience()))

    def pause_pool(self, name: str) -> schemas.Pool:
        """Let all consumers of a pool drain, and start none."""
        return self._run(calls.steer_pool(name, "pause", patience=self._patience()))

    def resume_pool(self, name: str) -> schemas.Pool:
        """Let a pool have consumers again."""
        return self._run(calls.steer_pool(name, "resume", patience=self._patience()))

    def status(self) -> schemas.Status:
        """The whole system at one moment: queues, pools, consumers, broker and database."""
        return self._run(calls.status(patience=self._patience()))

    def metrics(self) -> str:
        """What Prometheus scrapes, as text."""
        return self._run(calls.metrics(patience=self._patience()))

    def _run(self, steps: Steps[T]) -> T:
        return drive(steps, lambda step: perform(step, self._transport))

    def _patience(self) -> Patience:
        return Patience(self._retry_seconds)


class Job(JobFacts):
    """One job of a `Client`. What it says of itself is what was last heard: `refresh`, `wait` and `result` ask."""

    def __init__(self, client: Client, record: calls.JobRecord) -> None:
        super().__init__(record)
        self._client = client

    def refresh(self) -> Job:
        """Ask how it stands now."""
        return self._heard(calls.get_job(self.id, wait_seconds=0.0, patience=self._client._patience()))

    def wait(self, timeout: float | None = None) -> Job:
        """Return once it has ended, in whichever way; WaitTimeout after `timeout` seconds leaves it running."""
        if self.done:
            return self
        patience = Patience(calls.WAITING_PATIENCE_SECONDS)
        return self._heard(calls.wait(self.id, timeout_seconds=timeout, patience=patience))

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it and return its result, tensors as NumPy arrays where NumPy is installed.

        Raises JobFailed, JobCancelled or JobExpired for a job that ended without one, WaitTimeout after `timeout`
        seconds.
        """
        return self.wait(timeout)._record.value()

    def cancel(self) -> Job:
        """Withdraw it: at once while it is queued, as soon as its consumer hears of it while it runs."""
        return self._heard(calls.cancel(self.id, patience=self._client._patience()))

    def amend(self, *, priority: int | None = None, deadline_seconds: float | None = None) -> Job:
        """Change a queued job; Conflict in any other state."""
        return self._heard(
            calls.amend(
                self.id, priority=priority, deadline_seconds=deadline_seconds, patience=self._client._patience()
            )
        )

    def redrive(self, *, to: str | None = None) -> Job:
        """The new job that takes the place of this one, which ended without a result: made now, or before. `to` names
        another version."""
        steps = redriving.redrive_one(self.id, to=to, patience=self._client._patience())
        return Job(self._client, self._client._run(steps))

    def forget(self) -> None:
        """Delete it, once ended, with its input and result."""
        self._client._run(calls.forget(self.id, patience=self._client._patience()))

    def _heard(self, steps: Steps[calls.JobRecord]) -> Job:
        self._record = self._client._run(steps)
        return self


class Bulk(BulkFacts):
    """Jobs submitted as a unit, of any number."""

    def __init__(self, client: Client, data: schemas.Bulk) -> None:
        super().__init__(data)
        self._client = client

    def add(self, inputs: Iterable[Any], *, custom_ids: Iterable[str | None] | None = None) -> Bulk:
        """One chunk, all or nothing, at most `data.chunk_size` inputs. Their indexes go on from `jobs`."""
        first_index = self.jobs
        body = calls.encode_chunk(inputs, first_index=first_index, custom_ids=custom_ids)
        patience = Patience(self._client._retry_seconds, through_full=True)
        self._client._run(calls.add_chunk(self.id, body, first_index=first_index, patience=patience))
        return self.refresh()

    def seal(self) -> Bulk:
        """Nothing more will be added."""
        return self._heard(calls.seal(self.id, patience=self._client._patience()))

    def refresh(self) -> Bulk:
        """Ask how it stands now."""
        return self._heard(calls.get_bulk(self.id, patience=self._client._patience()))

    def cancel(self) -> Bulk:
        """Withdraw every job that has not ended, and seal it."""
        return self._heard(calls.steer(self.id, "cancel", patience=self._client._patience()))

    def pause(self) -> Bulk:
        """Hold back its queued jobs."""
        return self._heard(calls.steer(self.id, "pause", patience=self._client._patience()))

    def resume(self) -> Bulk:
        return self._heard(calls.steer(self.id, "resume", patience=self._client._patience()))

    def results(
        self,
        *,
        after: int = 0,
        ordered: bool = False,
        errors: Literal["raise", "yield"] = "raise",
        progress: bool | str = False,
    ) -> Results:
        """Its results until it is sealed and finished, as `map` gives them; `after` is an earlier reader's `cursor`."""
        flow, handing = prepare(
            self.refresh().data,
            total=self.jobs if self.data.sealed_at else None,
            after=after,
            ordered=ordered,
            raises=errors == "raise",
            max_in_flight=MAX_IN_FLIGHT,
            progress=progress,
            retry_seconds=self._client._retry_seconds,
        )
        return Results(self._client._transport, None, key=None, flow=flow, handing=handing)

    def _heard(self, steps: Steps[schemas.Bulk]) -> Bulk:
        self.data = self._client._run(steps)
        return self
