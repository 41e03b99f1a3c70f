"""Claimed jobs and loaded versions for unit tests of the consumers."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batchyard.jobs import ClaimedJob, Lane
from batchyard.model import Model
from batchyard.settings import ModelSettings
from batchyard_consumers.served import Served
from batchyard_consumers.speed import Speed

FIRM, TOLERANT = 1, 2


def claimed(number: int, value: Any = None, **changes: Any) -> ClaimedJob:
    fields: dict[str, Any] = {
        "id": number,
        "attempt": 1,
        "queue_id": FIRM,
        "tenant_id": 1,
        "priority": 5,
        "cost_estimate": 1,
        "deadline_ms": None,
        "bulk_id": None,
        "failures": 0,
        "max_failures": 3,
        "suspect": False,
        "created_at_ms": 0,
        "input": msgspec.json.encode(value),
        "params": None,
    }
    return ClaimedJob(**(fields | changes))


def served(
    model: Model | None = None,
    *,
    name: str = "model",
    budget: int | None = None,
    version_id: int = 1,
    queue_ids: Mapping[Lane, int] | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Served:
    """A version, loaded where a model is given."""
    made = Served(
        version_id=version_id,
        settings=ModelSettings(name=name, runtime="tests:Model", options=options or {}, **settings),
        queue_ids=queue_ids or {Lane.FIRM: FIRM, Lane.TOLERANT: TOLERANT},
        speed=Speed(configured_budget=budget),
    )
    if model is not None:
        model.options = dict(options or {})
        model.load("cpu")
        made.install(model, load_seconds=0.0)
    return made


def ids_of(jobs: Sequence[ClaimedJob]) -> list[int]:
    return [job.id for job in jobs]
