"""Claimed jobs become prepared items: decoded together, checked, preprocessed on CPU threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from batchyard.errors import InvalidInput
from batchyard.inputs import Validator
from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard.payloads import Fetch, may_refer, resolve
from batchyard_consumers.channels import Channel
from batchyard_consumers.executing import Executing
from batchyard_consumers.failures import FailureLog, describe
from batchyard_consumers.held import Chunk, Finished, Holding
from batchyard_consumers.meter import Meter
from batchyard_consumers.pools import Pools
from batchyard_consumers.retries import RetryPolicy
from batchyard_consumers.served import Served

PIECE_JOBS = 256
"""Prepared at a time where that is work: the first reach the device while the rest is prepared."""

FetchFor = Callable[[int], Fetch]
"""Tenant → what fetches its payloads."""

_decode = msgspec.json.Decoder().decode


class Preparer:
    """The preprocessing stage; `run` is the body of each of its threads."""

    def __init__(
        self,
        *,
        chunks: Channel[Chunk],
        pools: Pools,
        finished: Channel[Finished],
        holding: Holding,
        retries: RetryPolicy,
        fetch_for: FetchFor,
        executing: Executing,
        meter: Meter,
    ) -> None:
        self._chunks = chunks
        self._pools = pools
        self._finished = finished
        self._holding = holding
        self._retries = retries
        self._fetch_for = fetch_for
        self._executing = executing
        self._meter = meter
        self._failures = FailureLog()
        self.returned: list[tuple[int, Sequence[ClaimedJob]]] = []
        """Jobs that came too late for the pools, with their owner; for a drain to hand back."""

    def run(self) -> None:
        """Prepare until the channel is closed and empty (raises Closed)."""
        while True:
            chunk = self._chunks.take()
            if chunk is None:
                continue
            pieces = _pieces(chunk)
            while pieces:
                if self._pools.is_closed:
                    self._return(chunk, [job for piece in pieces for job in piece])
                    break
                self._prepare(chunk, pieces.popleft())

    def _prepare(self, chunk: Chunk, jobs: Sequence[ClaimedJob]) -> None:
        started = time.perf_counter()
        served = chunk.served
        if served.is_plain and served.is_level:
            items, costs = self._items(served, jobs), [1] * len(jobs)
            cost_faults: dict[int, Exception] = {}
        else:
            with self._executing.of(chunk.owner, jobs):
                items = self._items(served, jobs)
                costs, cost_faults = ([1] * len(items), {}) if served.is_level else _costs(served, items)
        faults = {i: item for i, item in enumerate(items) if isinstance(item, Exception)} | cost_faults
        if faults:
            self._fail(chunk, [(jobs[i], fault) for i, fault in faults.items()])
            kept = [i for i in range(len(jobs)) if i not in faults]
            jobs, items, costs = [jobs[i] for i in kept], [items[i] for i in kept], [costs[i] for i in kept]
        self._meter.preprocessed(served, time.perf_counter() - started)
        if jobs and not self._pools.add(served, jobs, items, costs, owner=chunk.owner):
            self._return(chunk, jobs)

    def _return(self, chunk: Chunk, jobs: Sequence[ClaimedJob]) -> None:
        """Too late for a batch: a drain has begun, or the registration that they were claimed under is over."""
        self._holding.left_pool(chunk.served, len(jobs))
        self._holding.let_go(len(jobs))
        self.returned.append((chunk.owner, jobs))

    def _items(self, served: Served, jobs: Sequence[ClaimedJob]) -> list[Any]:
        """An item or an exception for each job."""
        values, has_payloads = decode_inputs(jobs)
        if served.validator is not None:
            values = _checked(served.validator, values)
        if has_payloads:
            values = self._with_payloads(jobs, values)
        if served.is_plain:
            return values
        items: list[Any] = list(values)
        for params, places in _by_params(jobs, values).items():
            prepared = self._preprocess(served, [values[i] for i in places], _decode(params) if params else {})
            for place, item in zip(places, prepared, strict=True):
                items[place] = item
        return items

    def _preprocess(self, served: Served, values: list[Any], params: dict[str, Any]) -> Sequence[Any]:
        """Call the model; where it raises, call it with halves until the guilty inputs stand alone."""
        assert served.model is not None
        try:
            items = list(served.model.preprocess(values, params))
            if len(items) == len(values):
                return items
            raise ValueError(f"preprocess returned {len(items)} items for {len(values)} inputs")
        except Exception as error:  # noqa: BLE001  a model may raise anything; it fails inputs, not the stage
            self._failures.note(model=served.name, stage="preprocess", error=error)
            failure = error
        if len(values) == 1:
            return [failure]
        middle = len(values) // 2
        return [
            *self._preprocess(served, values[:middle], params),
            *self._preprocess(served, values[middle:], params),
        ]

    def _with_payloads(self, jobs: Sequence[ClaimedJob], values: list[Any]) -> list[Any]:
        """Put the bytes in the place of each `{"$payload": id}`; an exception where that cannot be."""
        resolved = list(values)
        for place, (job, value) in enumerate(zip(jobs, values, strict=True)):
            if may_refer(job.input) and not isinstance(value, Exception):
                try:
                    resolved[place] = resolve(value, self._fetch_for(job.tenant_id))
                except Exception as error:  # noqa: BLE001  storage may raise anything; it fails or delays this job
                    resolved[place] = error
        return resolved

    def _fail(self, chunk: Chunk, failed: Sequence[tuple[ClaimedJob, Exception]]) -> None:
        outcomes: list[Outcome] = [self._retries.outcome(job, describe(fault)) for job, fault in failed]
        self._holding.left_pool(chunk.served, len(outcomes))
        for state in (State.FAILED, State.WAITING):
            self._meter.finished(chunk.served, state, sum(outcome.state is state for outcome in outcomes))
        self._finished.put(Finished(owner=chunk.owner, outcomes=outcomes))


def _pieces(chunk: Chunk) -> deque[Sequence[ClaimedJob]]:
    """What is prepared at a time: a little, so that the device starts on the first while the next is prepared, or all
    where preparing runs no code of the model; and each suspect alone."""
    if chunk.served.is_plain and chunk.served.is_level:
        return deque([chunk.jobs])
    suspects = [job for job in chunk.jobs if job.suspect]
    others = [job for job in chunk.jobs if not job.suspect] if suspects else chunk.jobs
    pieces = (others[start : start + PIECE_JOBS] for start in range(0, len(others), PIECE_JOBS))
    return deque([*pieces, *([suspect] for suspect in suspects)])


def decode_inputs(jobs: Sequence[ClaimedJob]) -> tuple[list[Any], bool]:
    """Decode the inputs in one go: a value or an InvalidInput for each, and whether payloads may be named in them."""
    joined = b",".join([job.input for job in jobs])
    has_payloads = may_refer(joined)
    try:
        values = _decode(b"[" + joined + b"]")
        if len(values) == len(jobs):
            return values, has_payloads
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    return [_decoded(job.input) for job in jobs], has_payloads


def _decoded(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return InvalidInput(f"the input is not JSON: {error}")


def _by_params(jobs: Sequence[ClaimedJob], values: Sequence[Any]) -> dict[bytes | None, list[int]]:
    """Places of the good inputs by their parameters."""
    groups: dict[bytes | None, list[int]] = {}
    for place, (job, value) in enumerate(zip(jobs, values, strict=True)):
        if not isinstance(value, Exception):
            groups.setdefault(job.params, []).append(place)
    return groups


def _checked(validator: Validator, values: list[Any]) -> list[Any]:
    """Each value, or an InvalidInput where it does not fit the model's schema."""

    def fault(value: Any) -> InvalidInput | None:
        try:
            validator.check([value], place=lambda _: "/input", several=False)
        except InvalidInput as misfit:
            return misfit
        return None

    try:
        validator.check([value for value in values if not isinstance(value, Exception)], place=str, several=True)
    except InvalidInput:
        return [value if isinstance(value, Exception) else fault(value) or value for value in values]
    return values


def _costs(served: Served, items: Sequence[Any]) -> tuple[list[int], dict[int, Exception]]:
    """Exact costs, and the items that `cost` raises on; items that have failed before cost nothing."""
    if not any(isinstance(item, Exception) for item in items):
        try:
            return served.costs(items), {}
        except Exception:  # noqa: BLE001  again, one by one, to know which
            pass
    costs, faults = [0] * len(items), {}
    for place, item in enumerate(items):
        if not isinstance(item, Exception):
            try:
                costs[place] = served.costs([item])[0]
            except Exception as error:  # noqa: BLE001  a model may raise anything; it fails this item
                faults[place] = error
    return costs, faults
