"""The raw routes that take jobs in: POST /v1/models/{model}/jobs and POST /v1/bulks/{id}/jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from batchyard.catalog import Catalog
from batchyard.errors import NotFound, QueueFull, Unavailable, UnknownModel
from batchyard.jobs import Accepted, Submission, format_id, parse_id
from batchyard.schemas import MAX_LOOKUP_IDS, MEDIA_NDJSON, ChunkAccepted, SubmittedJob, SubmittedJobs, rfc3339
from batchyard.settings import ServerSettings
from batchyard.store.base import JobStore
from batchyard.store.bulks import unknown_bulk
from batchyard.submission import BulkPlan, Prepared, Submitter
from batchyard.ticketing import Allowance
from batchyard_producer.auth import Gate, Identity
from batchyard_producer.group_commit import GroupCommit
from batchyard_producer.intake import Request
from batchyard_producer.problems import Headers
from batchyard_producer.reading import Reading

INLINE_BYTES = 64 * 1024
"""Larger bodies are read in a thread, so that other requests are answered meanwhile."""
KEPT_PLANS = 4096
RETRY_AFTER_SECONDS = (1, 60)
"""Least and most that a submitter is told to wait before it polls."""

_encode = msgspec.json.Encoder().encode


class Submitting:
    """Owned by the event loop."""

    def __init__(
        self,
        *,
        store: JobStore,
        catalog: Catalog,
        submitter: Submitter,
        commit: GroupCommit,
        reading: Reading,
        gate: Gate,
        server: ServerSettings,
        pool: ThreadPoolExecutor,
        allowance: Allowance | None = None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._submitter = submitter
        self._commit = commit
        self._reading = reading
        self._gate = gate
        self._server = server
        self._pool = pool
        self._allowance = allowance
        self._plans: dict[int, BulkPlan] = {}

    async def jobs(self, request: Request, model: str) -> None:
        """POST /v1/models/{model}/jobs."""
        identity = self._gate.known(request.headers) or await self._gate.identify(request.headers)
        identity.require("jobs")
        body = await request.body(limit=self._server.max_body_bytes)
        prepared = await self._prepare(
            partial(
                self._submitter.jobs,
                body,
                model=model,
                caller=identity.caller,
                now_ms=self._store.now_ms(),
                idempotency_key=request.idempotency_key(),
                trace_context=request.header(b"traceparent"),
            ),
            size=len(body),
        )
        accepted = await self._commit.submit(self._ticketed(prepared.submission))
        wait_seconds = request.preferred_wait()
        if wait_seconds and len(accepted.ids) <= MAX_LOOKUP_IDS:
            try:
                await self._answer_when_done(request, prepared, accepted, identity=identity, seconds=wait_seconds)
                return
            except (QueueFull, Unavailable):
                if request.status:
                    raise
                # The jobs are committed: that nobody can wait for them now is no reason to refuse them.
        await self._answer_jobs(request, prepared, accepted, identity=identity)

    async def chunk(self, request: Request, bulk: str) -> None:
        """POST /v1/bulks/{id}/jobs."""
        identity = self._gate.known(request.headers) or await self._gate.identify(request.headers)
        identity.require("jobs")
        plan = await self._plan(bulk, identity=identity)
        body = await request.body(limit=self._server.max_body_bytes)
        is_lines = (request.header(b"content-type") or "").startswith((MEDIA_NDJSON, "application/jsonl"))
        prepare = self._submitter.chunk_lines if is_lines else self._submitter.chunk
        prepared = await self._prepare(
            partial(prepare, body, plan=plan, caller=identity.caller, idempotency_key=request.idempotency_key()),
            size=len(body),
        )
        accepted = await self._commit.submit(self._ticketed(prepared.submission))
        answer = ChunkAccepted(
            bulk_id=bulk,
            first_id=format_id(accepted.ids[0]),
            accepted=len(accepted.ids),
            created_at=rfc3339(accepted.created_at_ms),
            replayed=accepted.replayed,
        )
        await request.answer(202, _encode(answer), self._headers(prepared, location=f"/v1/bulks/{bulk}"))

    # --- steps ---

    async def _prepare(self, prepare: Callable[[], Prepared], *, size: int) -> Prepared:
        loop = asyncio.get_running_loop()
        try:
            return prepare() if size <= INLINE_BYTES else await loop.run_in_executor(self._pool, prepare)
        except UnknownModel:
            # Another process may have configured it a moment ago.
            await loop.run_in_executor(self._pool, partial(self._catalog.refresh, older_than_seconds=0.5))
            return prepare()

    def _ticketed(self, submission: Submission) -> Submission:
        """Within the leader's allowance this process publishes the tickets itself, right after the commit."""
        if self._allowance is None or not self._allowance.take(submission.queue_id, len(submission.inputs)):
            return submission
        return msgspec.structs.replace(submission, ticketed=True)

    async def _plan(self, bulk: str, *, identity: Identity) -> BulkPlan:
        """What the chunks of this bulk share; NotFound also for another tenant's."""
        number = parse_id(bulk)
        if number is None:
            raise NotFound(f"there is no bulk {bulk[:40]!r}")
        plan = self._plans.get(number)
        if plan is None:
            view = await asyncio.get_running_loop().run_in_executor(
                self._pool, partial(self._store.get_bulk, number, tenant_id=identity.tenant_id)
            )
            plan = self._submitter.plan(view)
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            self._plans[number] = plan
        if plan.tenant_id != identity.tenant_id:
            raise unknown_bulk()  # word for word as where nobody has it
        return plan

    # --- answers ---

    async def _answer_jobs(
        self, request: Request, prepared: Prepared, accepted: Accepted, *, identity: Identity
    ) -> None:
        created_at = rfc3339(accepted.created_at_ms)
        if prepared.several:
            several = SubmittedJobs(
                model=prepared.version.name,
                lane=prepared.lane.word,  # type: ignore[arg-type]
                created_at=created_at,
                ids=list(map(format_id, accepted.ids)),
                replayed=accepted.replayed,
            )
            await request.answer(202, _encode(several), self._headers(prepared))
            return
        number = format_id(accepted.ids[0])
        one = SubmittedJob(
            id=number,
            model=prepared.version.name,
            lane=prepared.lane.word,  # type: ignore[arg-type]
            state="queued",
            created_at=created_at,
            replayed=accepted.replayed,
        )
        if accepted.replayed:
            one = await self._as_it_stands(one, accepted.ids[0], identity=identity)
        await request.answer(202, _encode(one), self._headers(prepared, location=f"/v1/jobs/{number}"))

    async def _as_it_stands(self, answer: SubmittedJob, job_id: int, *, identity: Identity) -> SubmittedJob:
        """A replay answers with the job made before: its state may have moved, and an alias may resolve anew by now."""
        view = await self._reading.view(job_id, tenant_id=identity.tenant_id, results=False)
        load = self._catalog.load(view.queue_id)
        return msgspec.structs.replace(
            answer,
            state=view.state.word,
            model=load.version.name,
            lane=load.lane.word,
        )

    async def _answer_when_done(
        self, request: Request, prepared: Prepared, accepted: Accepted, *, identity: Identity, seconds: float
    ) -> None:
        """`Prefer: wait=N`: 200 with the finished job or jobs, or 202 with them as they stand when the time is over."""
        location = None if prepared.several else f"/v1/jobs/{format_id(accepted.ids[0])}"
        applied = (b"preference-applied", b"wait=%d" % seconds)
        await self._reading.answer_after_wait(
            request,
            list(accepted.ids),
            identity=identity,
            seconds=seconds,
            several=prepared.several,
            headers=[*self._headers(prepared, location=location), applied],
        )

    def _headers(self, prepared: Prepared, *, location: str | None = None) -> Headers:
        load = self._catalog.load(prepared.submission.queue_id)
        seconds = load.seconds_for(load.queued + 1)
        least, most = RETRY_AFTER_SECONDS
        retry_after = least if seconds is None else int(min(max(seconds, least), most))
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"%d" % retry_after)]
        if location is not None:
            headers.append((b"location", location.encode()))
        return headers
