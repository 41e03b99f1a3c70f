"""What the policy is told and what it answers, in production and in the simulator alike.

Work is measured in seconds of one replica's time on hardware of speed 1; a replica of speed 2 does two of them in a
second. Times are seconds from now, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from batchyard.jobs import BUCKET_MS


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """Work that is wanted at one time."""

    in_seconds: float
    """Until its deadline, rounded up as `Fleet.due_step_seconds` says; negative where that is past, `math.inf` where it
    has none."""
    jobs: int
    work_seconds: float


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one queue: one model version and lane."""

    queue: str
    """`model@version lane`, for explanations."""
    model: str
    """`model@version`."""
    is_tolerant: bool
    due: Sequence[Due] = ()
    """What is queued, waiting and due, or running; ascending by time. Paused and held jobs are left out."""
    running_jobs: int = 0
    """Of `due`, how many jobs run: while there are any, the pool is not sized to nothing."""
    is_interactive: bool = False
    """Someone waits for one of its jobs now: no held activation."""
    is_prior: bool = False
    """The work is estimated by a stated prior, for its model's speed is not learned yet: decide with a wide margin."""
    value: float = 1.0
    """Of one of its jobs in time, relative to others: where the budget is short, those of most value go first."""
    forecast: Sequence[Due] = ()
    """Work that is likely to arrive (an upper quantile), by the time when it will be due."""


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    state: Literal["ready", "starting", "draining"]
    ready_in_seconds: float = 0.0
    """Of one that starts: how long it still needs, by the cold start's p90."""
    zone: str = ""
    is_busy: bool = False


class Zone(msgspec.Struct, frozen=True, kw_only=True):
    """Where spot replicas may run."""

    name: str
    preempted_ago_seconds: float = math.inf
    preemptions: int = 0
    """Within the last hour."""
    refused_ago_seconds: float = math.inf
    """Since a replica was last asked for there and none came within a cold start's p90; 0 while one is asked for so."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Identical consumers. Pools whose models overlap share their demand: a spot pool takes tolerant work alone."""

    name: str
    capacity: Literal["on_demand", "spot"]
    models: frozenset[str]
    """The `model@version` that it serves."""
    minimum: int
    maximum: int
    devices: int | None = None
    """Where it is not the pool's own limit that makes the maximum: the replicas that there are devices for now."""
    price_per_hour: float | None = None
    """Of one replica; None: not known, and costs are compared as replica-hours."""
    speed: float = 1.0
    cold_start_seconds: float
    """p90, from the decision to start until the first claim."""
    restart_cost_seconds: float
    """What a start costs, as seconds of an idle replica's time: by it an idle replica is kept or let go."""
    usual_slack_seconds: float | None = None
    """Between arrival and deadline, as nearly all jobs of its models are given; None: not known, or they have none.
    Where it is long the next job can wait for a start, so that no idle replica needs to wait for the next job."""
    replicas: Sequence[Replica] = ()
    swap_seconds: float = 0.0
    """What a replica needs to put another of its models into memory."""
    idle_for_seconds: float = 0.0
    """Since when at least one of its replicas has been idle without a pause; 0: none is."""
    zones: Sequence[Zone] = ()
    pinned: int | None = None
    """As many as someone fixed by hand."""
    is_paused: bool = False
    """None are wanted, and what runs is drained."""
    never_loaded: Sequence[str] = ()
    """Versions that no consumer has loaded yet: one is started to learn their schema and speed."""

    is_scheduled: bool = False
    """The limits are a schedule's, not its own."""

    def may_do(self, demand: Demand) -> bool:
        return demand.model in self.models and (demand.is_tolerant or self.capacity == "on_demand")

    def count(self, *states: str) -> int:
        return sum(replica.state in states for replica in self.replicas)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What may still be spent: a token bucket each, None where there is no limit."""

    per_hour: float | None = None
    """The limit, in dollars an hour."""
    left_this_hour: float | None = None
    per_month: float | None = None
    left_this_month: float | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one decision looks at."""

    now_seconds: float
    """Unix time; only differences and the hour of the day matter."""
    pools: Sequence[Pool]
    demands: Sequence[Demand]
    budget: Budget = Budget()
    due_step_seconds: float = BUCKET_MS / 1000
    """How finely deadlines are known: work due `in_seconds` may be due as much earlier."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas one pool should have, and why."""

    pool: str
    replicas: int
    rule: str
    """What decided, as one word for metrics: `deadline`, `hold`, `idle`, `spot`, `budget`, `pinned` and the like."""
    reason: str
    """For people, completing "N consumers: …"."""
    binding_deadline_seconds: float | None = None
    """The deadline that asked for the most replicas."""
    unmeetable_jobs: int = 0
    """Whose deadline comes before any replica that is not there yet could help."""
    work_seconds: float = 0.0
    zones: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Of a spot pool: how many in each zone."""
    next_look_seconds: float | None = None
    """When the decision changes by itself at the latest, such as the end of a hold."""
