"""From a claimed job to what its model computes on: decoded, checked, with its payload, preprocessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from batchyard.errors import InvalidInput
from batchyard.inputs import Validator
from batchyard.jobs import ClaimedJob
from batchyard.model import Model
from batchyard.payloads import Fetch, may_refer, resolve
from batchyard_consumers.failures import FailureLog, caught
from batchyard_consumers.served import Served

FetchFor = Callable[[int], Fetch]
"""Tenant → what fetches its payloads."""

_decode = msgspec.json.Decoder().decode


class Items:
    """Makes items out of jobs, as often as they are asked for: a model may change what it is given. Thread-safe."""

    def __init__(self, fetch_for: FetchFor) -> None:
        self._fetch_for = fetch_for
        self._failures = FailureLog()

    def of(self, served: Served, jobs: Sequence[ClaimedJob], *, model: Model | None = None) -> list[Any]:
        """An item or an exception for each job; `model` where it is not the one that the version has now."""
        values, has_payloads = decode_inputs(jobs)
        if served.validator is not None:
            values = _checked(served.validator, values)
        if has_payloads:
            values = self._with_payloads(jobs, values)
        if served.is_plain:
            return values
        model = model or served.model
        assert model is not None
        items: list[Any] = list(values)
        for params, places in _by_params(jobs, values).items():
            try:
                prepared = _preprocessed(model, [values[i] for i in places], _decode(params) if params else {})
            except BaseException as error:  # noqa: BLE001  a model may raise anything; it fails inputs, not the stage
                self._failures.note(model=served.name, stage="preprocess", error=error)
                prepared = self._apart(served, [jobs[i] for i in places], model, caught(error))
            for place, item in zip(places, prepared, strict=True):
                items[place] = item
        return items

    def _apart(self, served: Served, jobs: Sequence[ClaimedJob], model: Model, error: Exception) -> list[Any]:
        """The items of halves, until the guilty inputs stand alone; made anew from the jobs, whatever the failed call
        has done to its inputs."""
        if len(jobs) == 1:
            return [error]
        middle = len(jobs) // 2
        return [*self.of(served, jobs[:middle], model=model), *self.of(served, jobs[middle:], model=model)]

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


def _preprocessed(model: Model, values: list[Any], params: dict[str, Any]) -> list[Any]:
    items = list(model.preprocess(values, params))
    if len(items) != len(values):
        raise ValueError(f"preprocess returned {len(items)} items for {len(values)} inputs")
    return items


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
