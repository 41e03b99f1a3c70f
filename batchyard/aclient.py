"""The SDK for asyncio: `AsyncClient`, its jobs and its bulks.

The same as `batchyard.client`, where every method is explained. Neither holds logic: each call is steps of
`batchyard.sdk`, performed here.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence, Sized
from typing import Any, Literal, TypeVar, Unpack

from batchyard import schemas
from batchyard.sdk import calls, redriving
from batchyard.sdk.async_mapping import AsyncResults
from batchyard.sdk.calls import Options, Which
from batchyard.sdk.facts import BulkFacts, JobFacts
from batchyard.sdk.http import AsyncHttp, Endpoint, adrive, aperform
from batchyard.sdk.mapping import MAX_IN_FLIGHT, Flow, Handing, map_chunk_size, prepare
from batchyard.sdk.reading import Result
from batchyard.sdk.steps import Patience, Steps
from batchyard.sdk.webhooks import AsyncWebhooks

__all__ = ["AsyncBulk", "AsyncClient", "AsyncJob", "AsyncResults", "Options", "Result"]

T = TypeVar("T")


class AsyncClient:
    """Submits jobs and reads what became of them. Owned by one event loop; use it in an `async with`.

    `url` defaults to BATCHYARD_URL, then to http://127.0.0.1:8080; `api_key` to BATCHYARD_API_KEY. `timeout` is that of
    one answer, in seconds, long polls apart. A call that meets an API that is away is tried again for `retry_seconds`;
    waiting and `map` have more patience. Submissions carry an idempotency key, so a repeated one never doubles.

    Every failure is an error of `batchyard.errors`, with a stable `code` and `retryable`.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout: float = 30.0, retry_seconds: float = 10.0
    ) -> None:
        self._transport = AsyncHttp(Endpoint(url, api_key=api_key, timeout_seconds=timeout))
        self._retry_seconds = retry_seconds

    async def aclose(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # --- jobs ---

    async def submit(
        self,
        model: str,
        input: Any,  # noqa: A002  the API's word
        *,
        custom_id: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> AsyncJob:
        """Submit one input, anything that has a JSON form. Committed when this returns."""
        steps = calls.submit(
            model,
            input,
            custom_id=custom_id,
            idempotency_key=idempotency_key,
            options=options,
            patience=self._patience(),
        )
        return AsyncJob(self, await self._run(steps))

    async def submit_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        custom_ids: Sequence[str | None] | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> list[AsyncJob]:
        """Submit up to 10,000 inputs in one call, all or nothing; one job each, in order. For more there is `map`."""
        steps = calls.submit_many(
            model,
            list(inputs),
            custom_ids=custom_ids,
            idempotency_key=idempotency_key,
            options=options,
            patience=self._patience(),
        )
        return [AsyncJob(self, record) for record in await self._run(steps)]

    async def get(self, job_id: str, *, wait: float = 0.0) -> AsyncJob:
        """The job with its result or error; with `wait`, once it has ended or so many seconds have passed."""
        return AsyncJob(self, await self._run(calls.get_job(job_id, wait_seconds=wait, patience=self._patience())))

    async def lookup(
        self, ids: Iterable[str | AsyncJob], *, wait: float = 0.0, until: Literal["any", "all"] = "all"
    ) -> list[AsyncJob]:
        """Many jobs, in the order asked for; with `wait`, once any or all have ended or the seconds have passed."""
        wanted = [job.id if isinstance(job, AsyncJob) else job for job in ids]
        steps = calls.lookup(wanted, wait_seconds=wait, until=until, patience=self._patience())
        return [AsyncJob(self, record) for record in await self._run(steps)]

    async def jobs(self, *, page_size: int = 100, **which: Unpack[Which]) -> AsyncIterator[AsyncJob]:
        """All jobs that match, newest first, fetched page by page. Those that failed have their `data.error`."""
        after = None
        while True:
            steps = calls.list_page(which=which, after=after, limit=page_size, patience=self._patience())
            records, after = await self._run(steps)
            for record in records:
                yield AsyncJob(self, record)
            if after is None:
                return

    async def redrive(
        self,
        ids: Iterable[str | AsyncJob] | None = None,
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
        wanted = None if ids is None else [job.id if isinstance(job, AsyncJob) else job for job in ids]
        patience = Patience(self._retry_seconds, through_full=True)
        return await self._run(redriving.redrive(wanted, which=which, to=to, dry_run=dry_run, patience=patience))

    # --- many jobs ---

    def map(
        self,
        model: str,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        key: str | None = None,
        ordered: bool = False,
        errors: Literal["raise", "yield"] = "raise",
        progress: bool | str = False,
        after: int = 0,
        chunk_size: int | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        **options: Unpack[Options],
    ) -> AsyncResults:
        """`async for result in client.map(…)`: as `Client.map`, over an iterable or an asynchronous one.

        Begins with the first result asked for. An iterable that blocks, blocks the event loop.
        """
        key = key or calls.new_key()

        async def begin() -> tuple[Flow, Handing]:
            bulk = await self._run(
                calls.create_bulk(
                    model,
                    key=key,
                    chunk_size=map_chunk_size(chunk_size, max_in_flight),
                    validate=errors == "raise",
                    options=options,
                    patience=self._patience(),
                )
            )
            return prepare(
                bulk,
                total=len(inputs) if isinstance(inputs, Sized) else None,
                after=after,
                ordered=ordered,
                raises=errors == "raise",
                max_in_flight=max_in_flight,
                progress=progress,
                retry_seconds=self._retry_seconds,
            )

        return AsyncResults(self._transport, inputs, key=key, begin=begin)

    async def bulk(
        self,
        model: str | None = None,
        *,
        id: str | None = None,  # noqa: A002  the API's word
        key: str | None = None,
        chunk_size: int | None = None,
        validate: bool = True,
        **options: Unpack[Options],
    ) -> AsyncBulk:
        """A new bulk of `model`, or the one that `key` made; with `id`, that one. `map` does all of this by itself."""
        if id is not None:
            return AsyncBulk(self, await self._run(calls.get_bulk(id, patience=self._patience())))
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
        return AsyncBulk(self, await self._run(steps))

    async def upload(self, content: bytes, content_type: str = "application/octet-stream") -> dict[str, str]:
        """Keep bytes (an image, audio, a large text) for use inside inputs; returns what stands for them there."""
        return await self._run(calls.upload(content, content_type=content_type, patience=self._patience()))

    @property
    def webhooks(self) -> AsyncWebhooks:
        return AsyncWebhooks(self._run, self._patience)

    # --- models ---

    async def models(self) -> list[schemas.Model]:
        """Every model with its versions, schemas and backlog."""
        return await self._run(calls.models(patience=self._patience()))

    async def model(self, name: str) -> schemas.Model:
        return await self._run(calls.model(name, patience=self._patience()))

    async def pause(self, model: str, *, lane: schemas.LaneWord | None = None) -> schemas.Model:
        """Hold back a model's queued jobs, in one lane or in both; what runs goes on, and submissions are taken."""
        return await self._run(calls.set_paused(model, paused=True, lane=lane, patience=self._patience()))

    async def resume(self, model: str, *, lane: schemas.LaneWord | None = None) -> schemas.Model:
        """Let its queued jobs run again."""
        return await self._run(calls.set_paused(model, paused=False, lane=lane, patience=self._patience()))

    async def pools(self) -> list[schemas.Pool]:
        """Every pool with its consumers."""
        return await self._run(calls.pools(patience=self._patience()))

    async def pin_pool(self, name: str, *, replicas: int) -> schemas.Pool:
        """Fix the number of a pool's consumers by hand, at most its max."""
        return await self._run(calls.pin_pool(name, replicas=replicas, patience=self._patience()))

    async def unpin_pool(self, name: str) -> schemas.Pool:
        """Let the scaler decide again."""
        return await self._run(calls.steer_pool(name, "unpin", patience=self._patience()))

    async def pause_pool(self, name: str) -> schemas.Pool:
        """Let all consumers of a pool drain, and start none."""
        return await self._run(calls.steer_pool(name, "pause", patience=self._patience()))

    async def resume_pool(self, name: str) -> schemas.Pool:
        """Let a pool have consumers again."""
        return await self._run(calls.steer_pool(name, "resume", patience=self._patience()))

    async def status(self) -> schemas.Status:
        """The whole system at one moment: queues, pools, consumers, broker and database."""
        return await self._run(calls.status(patience=self._patience()))

    async def metrics(self) -> str:
        """What Prometheus scrapes, as text."""
        return await self._run(calls.metrics(patience=self._patience()))

    async def _run(self, steps: Steps[T]) -> T:
        return await adrive(steps, lambda step: aperform(step, self._transport))

    def _patience(self) -> Patience:
        return Patience(self._retry_seconds)


class AsyncJob(JobFacts):
    """One job of an `AsyncClient`, as last heard of: `refresh`, `wait` and `result` ask."""

    def __init__(self, client: AsyncClient, record: calls.JobRecord) -> None:
        super().__init__(record)
        self._client = client

    async def refresh(self) -> AsyncJob:
        """Ask how it stands now."""
        return await self._heard(calls.get_job(self.id, wait_seconds=0.0, patience=self._client._patience()))

    async def wait(self, timeout: float | None = None) -> AsyncJob:  # noqa: ASYNC109  as in `Job`
        """Return once it has ended, in whichever way; WaitTimeout after `timeout` seconds leaves it running."""
        if self.done:
            return self
        patience = Patience(calls.WAITING_PATIENCE_SECONDS)
        return await self._heard(calls.wait(self.id, timeout_seconds=timeout, patience=patience))

    async def result(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109  as in `Job`
        """Wait for it and return its result, tensors as NumPy arrays where NumPy is installed.

        Raises JobFailed, JobCancelled or JobExpired for a job that ended without one, WaitTimeout after `timeout`
        seconds.
        """
        return (await self.wait(timeout))._record.value()

    async def cancel(self) -> AsyncJob:
        """Withdraw it: at once while it is queued, as soon as its consumer hears of it while it runs."""
        return await self._heard(calls.cancel(self.id, patience=self._client._patience()))

    async def amend(self, *, priority: int | None = None, deadline_seconds: float | None = None) -> AsyncJob:
        """Change a queued job; Conflict in any other state."""
        return await self._heard(
            calls.amend(
                self.id, priority=priority, deadline_seconds=deadline_seconds, patience=self._client._patience()
            )
        )

    async def redrive(self, *, to: str | None = None) -> AsyncJob:
        """The new job that takes the place of this one, which ended without a result: made now, or before. `to` names
        another version."""
        steps = redriving.redrive_one(self.id, to=to, patience=self._client._patience())
        return AsyncJob(self._client, await self._client._run(steps))

    async def forget(self) -> None:
        """Delete it, once ended, with its input and result."""
        await self._client._run(calls.forget(self.id, patience=self._client._patience()))

    async def _heard(self, steps: Steps[calls.JobRecord]) -> AsyncJob:
        self._record = await self._client._run(steps)
        return self


class AsyncBulk(BulkFacts):
    """Jobs submitted as a unit, of any number."""

    def __init__(self, client: AsyncClient, data: schemas.Bulk) -> None:
        super().__init__(data)
        self._client = client

    async def add(self, inputs: Iterable[Any], *, custom_ids: Iterable[str | None] | None = None) -> AsyncBulk:
        """One chunk, all or nothing, at most `data.chunk_size` inputs. Their indexes go on from `jobs`."""
        first_index = self.jobs
        body = calls.encode_chunk(inputs, first_index=first_index, custom_ids=custom_ids)
        patience = Patience(self._client._retry_seconds, through_full=True)
        await self._client._run(calls.add_chunk(self.id, body, first_index=first_index, patience=patience))
        return await self.refresh()

    async def seal(self) -> AsyncBulk:
        """Nothing more will be added."""
        return await self._heard(calls.seal(self.id, patience=self._client._patience()))

    async def refresh(self) -> AsyncBulk:
        """Ask how it stands now."""
        return await self._heard(calls.get_bulk(self.id, patience=self._client._patience()))

    async def cancel(self) -> AsyncBulk:
        """Withdraw every job that has not ended, and seal it."""
        return await self._heard(calls.steer(self.id, "cancel", patience=self._client._patience()))

    async def pause(self) -> AsyncBulk:
        """Hold back its queued jobs."""
        return await self._heard(calls.steer(self.id, "pause", patience=self._client._patience()))

    async def resume(self) -> AsyncBulk:
        return await self._heard(calls.steer(self.id, "resume", patience=self._client._patience()))

    def results(
        self,
        *,
        after: int = 0,
        ordered: bool = False,
        errors: Literal["raise", "yield"] = "raise",
        progress: bool | str = False,
    ) -> AsyncResults:
        """Its results until it is sealed and finished, as `map` gives them; `after` is an earlier reader's `cursor`."""

        async def begin() -> tuple[Flow, Handing]:
            await self.refresh()
            return prepare(
                self.data,
                total=self.jobs if self.data.sealed_at else None,
                after=after,
                ordered=ordered,
                raises=errors == "raise",
                max_in_flight=MAX_IN_FLIGHT,
                progress=progress,
                retry_seconds=self._client._retry_seconds,
            )

        return AsyncResults(self._client._transport, None, key=None, begin=begin)

    async def _heard(self, steps: Steps[schemas.Bulk]) -> AsyncBulk:
        self.data = await self._client._run(steps)
        return self
