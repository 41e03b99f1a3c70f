"""Where a model's results are kept for others: which of the claimed jobs are computed here, and which are served with
what was computed before, or wait for who computes the same."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from batchyard.errors import NotFound, Unavailable
from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard.payloads import may_refer, resolve
from batchyard.sharing import Computed
from batchyard.store.base import JobStore
from batchyard.telemetry import log_event
from batchyard_consumers.channels import Channel
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import FailureLog
from batchyard_consumers.held import Chunk, Finished, Holding
from batchyard_consumers.meter import Meter
from batchyard_consumers.served import Served

log = logging.getLogger(__name__)

_decode = msgspec.json.Decoder().decode
# MessagePack tells bytes from text, so that no text is taken for a payload's digest.
_canonical = msgspec.msgpack.Encoder(order="sorted").encode


class Sharing:
    """Never in the way: where the database is away, or what a job computes cannot be told, it is computed. Used by
    several threads."""

    def __init__(
        self,
        *,
        store: JobStore,
        finished: Channel[Finished],
        holding: Holding,
        executing: Executing,
        meter: Meter,
    ) -> None:
        self._store = store
        self._finished = finished
        self._holding = holding
        self._executing = executing
        self._meter = meter
        self._failures = FailureLog()

    def by_input(self, chunk: Chunk) -> bool:
        """Leave in a chunk what is to be computed, where inputs say what that is; whether anything is left."""
        if chunk.served.caches_by_input:
            kept = self._divide(chunk, chunk.jobs, [self._of_input(chunk.served, job) for job in chunk.jobs])
            chunk.jobs = [job for job in kept if job is not None]
        return bool(chunk.jobs)

    def by_item(
        self, chunk: Chunk, jobs: Sequence[ClaimedJob], items: list[Any], costs: list[int]
    ) -> tuple[Sequence[ClaimedJob], list[Any], list[int]]:
        """What is to be computed of prepared jobs, where the model says what that is."""
        if not chunk.served.caches_by_item:
            return jobs, items, costs
        with self._executing.of(chunk.owner, jobs):
            keys = [self._of_item(chunk.served, job, item) for job, item in zip(jobs, items, strict=True)]
        kept = self._divide(chunk, jobs, keys)
        places = [place for place, job in enumerate(kept) if job is not None]
        return [job for job in kept if job is not None], [items[i] for i in places], [costs[i] for i in places]

    def _divide(
        self, chunk: Chunk, jobs: Sequence[ClaimedJob], keys: Sequence[bytes | None]
    ) -> Sequence[ClaimedJob | None]:
        """Each job as it is to be computed, or None."""
        served = chunk.served
        asking = {job.id: key for job, key in zip(jobs, keys, strict=True) if key is not None}
        if not asking:
            return jobs
        asked = [job for job in jobs if job.id in asking]
        keep_ms = round(1000 * (served.settings.cache_seconds or 0))
        try:
            division = self._store.share(asked, list(asking.values()), owner=chunk.owner, keep_ms=keep_ms)
        except Unavailable as away:
            log_event(log, "cache_away", level=logging.WARNING, model=served.name, reason=away.message)
            # It may have been done all the same: then others wait for these.
            return [replace(job, is_followed=job.id in asking) for job in jobs]
        hits, waits = len(division.served), len(division.following)
        self._meter.shared(served, hit=hits, wait=waits, miss=len(asked) - hits - waits)
        self._holding.left_pool(served, hits + waits)
        self._holding.let_go(waits)
        if hits:
            self._meter.finished(served, State.SUCCEEDED, hits)
            outcomes = [_outcome(job, division.served[job.id]) for job in asked if job.id in division.served]
            self._finished.put(Finished(owner=chunk.owner, outcomes=outcomes))
        gone = division.served.keys() | division.following
        kept = [None if job.id in gone else job for job in jobs]
        return [replace(job, is_followed=True) if job and job.id in division.computing else job for job in kept]

    # --- what a job computes ---

    def _of_input(self, served: Served, job: ClaimedJob) -> bytes | None:
        """Its input in canonical form, each payload by its digest."""

        def told() -> Any:
            value = _decode(job.input)
            return resolve(value, lambda number: self._digest(number, job.tenant_id)) if may_refer(job.input) else value

        return self._key(served, job, told)

    def _of_item(self, served: Served, job: ClaimedJob, item: Any) -> bytes | None:
        assert served.model is not None
        model = served.model
        return self._key(served, job, lambda: model.cache_key(item))

    def _key(self, served: Served, job: ClaimedJob, told: Callable[[], Any]) -> bytes | None:
        """What is told of it, by which version, with which parameters and for whom; None where it stands alone."""
        try:
            what = told()
            if what is None and served.caches_by_item:
                return None
            tenant_id = None if served.settings.cache_across_tenants else job.tenant_id
            params = _decode(job.params) if job.params else {}
            return hashlib.sha256(_canonical((served.version_id, tenant_id, params, what))).digest()
        except BaseException as error:  # noqa: BLE001  a model may raise anything, and an input may be no JSON
            self._failures.note(model=served.name, stage="cache_key", error=error)
            return None

    def _digest(self, payload_id: int, tenant_id: int) -> bytes:
        for info in self._store.get_payloads([payload_id]):
            if info.tenant_id == tenant_id:
                return info.digest
        raise NotFound("no such payload")


def _outcome(job: ClaimedJob, result: Computed) -> Outcome:
    """Served with another job's result, whose id is no other tenant's business."""
    by = result.job_id if result.tenant_id == job.tenant_id else 0
    return Outcome(job, State.SUCCEEDED, result.body, result.format, cost=result.cost, computed_by=by)
