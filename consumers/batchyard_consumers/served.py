"""One version that this consumer serves: its model once loaded, and what was learned about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchyard.inputs import Validator
from batchyard.jobs import Lane
from batchyard.model import ContinuousModel, Model
from batchyard.settings import ModelSettings
from batchyard_consumers.footprint import Footprint
from batchyard_consumers.speed import Speed

MOST_COST = 1 << 40
"""Of an item: the sum of eight million such still fits into 64 bits, as ledgers hold it."""


@dataclass(eq=False)
class Served:
    """Written by the loader while `model` is None; after that only `speed` changes, by the device's threads."""

    version_id: int
    settings: ModelSettings
    queue_ids: Mapping[Lane, int]
    speed: Speed
    model: Model | None = None
    validator: Validator | None = None
    """Compiled input schema; None where anything goes."""
    load_seconds: float = 0.0
    footprint: Footprint = field(default_factory=Footprint)
    return_seconds: float | None = None
    """Of its last return from the machine's memory to the device; None before it has."""
    load_error: str | None = None
    dtype: str = ""
    """What it computes in and, where that was found out, by which measurements; for people."""
    is_plain: bool = False
    """`preprocess` is the base class's: items are the inputs."""
    is_level: bool = False
    """`cost` is the base class's: every item costs 1."""
    pads: bool = True
    is_concurrent: bool = False
    """`forward` may run on several threads at once."""
    is_continuous: bool = False
    """Jobs join and leave between steps."""
    waiting_cost: int = 0
    """Of its jobs that are queued or running anywhere, as last looked at; where not all models fit."""
    caches_by_input: bool = False
    """Jobs with the same input share one computation."""
    caches_by_item: bool = False
    """So do those of which the model says that they compute the same."""
    is_leaving: bool = False
    """About to be evicted: what is held is finished, and nothing more is claimed."""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.settings.qualified

    @property
    def may_claim(self) -> bool:
        """Loaded, and there to stay."""
        return self.model is not None and not self.is_leaving

    def evict(self) -> None:
        """Let go of the model; what its batches on the way to the database need they have themselves."""
        self.model = None
        self.is_leaving = False

    def install(self, model: Model, *, load_seconds: float) -> None:
        """The model is loaded and warm: from here on its queues may be claimed."""
        kind = type(model)
        self.is_plain = kind.preprocess is Model.preprocess
        self.is_level = kind.cost is Model.cost
        if self.settings.cache_seconds is not None:
            self.caches_by_input = kind.cache_key is Model.cache_key
            self.caches_by_item = not self.caches_by_input
        self.pads = bool(getattr(model, "pads", True))
        self.is_concurrent = model.concurrent_forward
        if isinstance(model, ContinuousModel):
            self.is_continuous = True
            self.speed.jobs_inside = model.most_jobs
        self.load_seconds = load_seconds
        self.load_error = None
        self.model = model

    def costs(self, items: Sequence[Any]) -> list[int]:
        """Exact cost of each item, at least 1; ValueError above MOST_COST."""
        assert self.model is not None
        if self.is_level:
            return [1] * len(items)
        cost = self.model.cost
        costs = [max(1, int(cost(item))) for item in items]
        if costs and max(costs) > MOST_COST:
            raise ValueError(f"the model's cost() says {max(costs)}; an item costs at most {MOST_COST}")
        return costs
