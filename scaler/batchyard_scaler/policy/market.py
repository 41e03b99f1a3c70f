"""The sizes of pools that share work: each takes what it does cheapest, and leaves the rest to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from batchyard_scaler.policy.choice import cheapest_first, unit_price
from batchyard_scaler.policy.demand import fewest, lacking, soonest_useful
from batchyard_scaler.policy.hold import hold_seconds
from batchyard_scaler.policy.records import Pool
from batchyard_scaler.policy.spot import can_count_on_starts, over_provision, urgent, wait_seconds
from batchyard_scaler.policy.surplus import busy_of, surplus
from batchyard_scaler.policy.work import Piece, Replicas, Spare, apart_from_late, by_deadline, less, rest_of

FORECAST_STARTS = 2.0
"""Work that is only likely counts when it is due within so many starts; later work can wait until it has come."""


MARGIN_JOBS = 2.0
"""Where replicas may go at any time, work is wanted so many times a job's length before it is due: who just begins a
job when another must start keeps it waiting, and what a preemption cuts off begins anew."""


@dataclass(slots=True, kw_only=True)
class Want:
    """What one pool should have and why; filled in step by step while its market is sized."""

    pool: Pool
    replicas: int = 0
    rule: str = "idle"
    due_seconds: float | None = None
    """The deadline that asked for the most."""
    fallback: int = 0
    """Of `replicas`, for work that spot cannot make in time."""
    extra: int = 0
    """Of `replicas`, beyond what is needed should some be lost."""
    wait_seconds: float | None = None
    """When this changes by itself."""
    pieces: list[Piece] = field(default_factory=list)
    """All that it may do, forecasts apart."""
    taken: list[Piece] = field(default_factory=list)
    """What it does first, on demand."""
    unmeetable_jobs: float = 0.0
    is_sharing: bool = False
    """On demand, and works on what spot would do: then being busy is no reason to stay."""

    @property
    def work_seconds(self) -> float:
        return sum(piece.work_seconds for piece in self.pieces)

    def capacity(self, *, with_new: bool = True) -> Replicas:
        """Of what is there, and of what is asked for beyond that where it is likely to come."""
        ready, starting = state_of(self.pool)
        with_new = with_new and (self.pool.capacity == "on_demand" or can_count_on_starts(self.pool))
        new = max(0, self.replicas - ready - len(starting)) if with_new else 0
        ready = min(ready, self.pool.maximum)
        coming = [*starting, *[self.pool.cold_start_seconds] * new][: self.pool.maximum - ready]
        return Replicas(ready, coming, speed=self.pool.speed)

    def ask(self, replicas: int, *, rule: str, due_seconds: float | None) -> None:
        self.replicas = min(replicas, self.pool.maximum)
        self.rule = rule if replicas <= self.pool.maximum else "maximum"
        self.due_seconds = due_seconds


def state_of(pool: Pool) -> tuple[int, list[float]]:
    """How many are ready, and how long each that starts still needs."""
    starting = [replica.ready_in_seconds for replica in pool.replicas if replica.state == "starting"]
    return pool.count("ready"), starting


def size(pools: Sequence[Pool], pieces: Sequence[Piece]) -> list[Want]:
    """What each pool of a market should have. Work that spot may do is sized after what it may not: on-demand replicas
    that are there anyway help with it first, then spot, and on-demand ones again with what spot cannot make."""
    wants = {pool.name: Want(pool=pool) for pool in pools}
    for piece in pieces:
        if not piece.is_forecast:
            for name in piece.servers:
                wants[name].pieces.append(piece)
    spot = {pool.name for pool in pools if pool.capacity == "spot" and pool.maximum}
    firm = [piece for piece in pieces if spot.isdisjoint(piece.servers)]
    movable = [piece for piece in pieces if not spot.isdisjoint(piece.servers)]
    on_demand = [pool for pool in pools if pool.capacity == "on_demand"]
    for pool in on_demand:
        wants[pool.name].is_sharing = any(pool.name in piece.servers for piece in movable)
    left = firm
    order = cheapest_first(on_demand, work_seconds=_total(firm))
    for index, pool in enumerate(order, 1):
        left = _size_on_demand(wants[pool.name], left, later={other.name for other in order[index:]})
    if movable:
        _size_movable(wants, movable)
    for want in wants.values():
        _settle(want)
    _count_unmeetable(wants, left, movable)
    return list(wants.values())


def _size_on_demand(want: Want, pieces: Sequence[Piece], *, later: Set[str]) -> list[Piece]:
    """Size for all the work that this pool may do, as late as is safe. What it cannot make is left, and so is what a
    start of it comes too late for where one of the `later` pools may do it."""
    mine, left = _split(pieces, want.pool)
    if mine and later:
        soonest = soonest_useful(want.pool, mine)
        late = rest_of(mine, want.capacity(with_new=False))
        hasty = [piece for piece in late if piece.due_seconds < soonest and not later.isdisjoint(piece.servers)]
        mine, left = less(mine, hasty), _merged(left, hasty)
    want.taken = mine
    if mine and not _is_held(want, mine):
        _fit(want, mine)
        left = _merged(left, rest_of(mine, want.capacity()))
    if want.replicas < want.pool.minimum:
        want.replicas, want.rule = want.pool.minimum, "minimum"
    return left


def _size_movable(wants: Mapping[str, Want], pieces: list[Piece]) -> None:
    """Spot as soon as it pays, on demand as late as is safe: jobs are wanted a little before they are due."""
    margin = MARGIN_JOBS * _total(pieces) / sum(piece.jobs for piece in pieces)
    pieces = [piece._replace(due_seconds=piece.due_seconds - margin) for piece in pieces]
    for want in wants.values():
        if want.replicas and want.pool.capacity == "on_demand":
            ready, starting = state_of(want.pool)
            anyway = Replicas(min(ready, want.replicas), starting[: want.replicas - min(ready, want.replicas)],
                              speed=want.pool.speed)  # fmt: skip
            pieces = _without(pieces, want.pool, Spare(anyway, want.taken))
    on_demand = [want.pool for want in wants.values() if want.pool.capacity == "on_demand"]
    reserve = max(map(wait_seconds, on_demand), default=0.0)
    ahead = [piece._replace(due_seconds=piece.due_seconds - reserve) for piece in pieces]
    for pool in sorted((want.pool for want in wants.values()), key=lambda pool: (unit_price(pool), pool.name)):
        want = wants[pool.name]
        mine, left = _split(pieces, pool)
        if pool.capacity == "on_demand":
            _fall_back(want, mine, _split(ahead, pool)[0])
            pieces = _merged(left, rest_of(mine, want.capacity()))
            continue
        if not mine:
            continue
        if _is_held(want, mine, reserve_seconds=reserve):
            pieces, ahead = left, _split(ahead, pool)[1]
            continue
        _fit(want, mine, is_eager=True)
        want.extra = min(over_provision(pool, mine, replicas=want.replicas), pool.maximum - want.replicas)
        pieces = _merged(left, _left_by_spot(want, mine, on_demand))
        want.replicas += want.extra
        ahead = _without(ahead, pool, want.capacity(with_new=False))


def _left_by_spot(want: Want, pieces: Sequence[Piece], on_demand: Sequence[Pool]) -> list[Piece]:
    """What on-demand pools are to help with: not with what is late before they could, unless that piles up."""
    soonest = -math.inf
    if want.pool.count("ready", "starting") and on_demand:
        soonest = min(soonest_useful(other, pieces) for other in on_demand)
    kept, overdue = apart_from_late(pieces, want.capacity(), until_seconds=soonest)
    return [*rest_of(kept, want.capacity(), kept_until_seconds=soonest), *overdue]


def _is_held(want: Want, pieces: Sequence[Piece], *, reserve_seconds: float = 0.0) -> bool:
    pool = want.pool
    if pool.count("ready", "starting") or pool.minimum or want.replicas:
        return False
    hold = hold_seconds(pieces, pool=pool, reserve_seconds=reserve_seconds)
    if hold > 0:
        want.rule, want.wait_seconds, want.due_seconds = "hold", hold, pieces[0].due_seconds
    return hold > 0


def _fit(want: Want, pieces: Sequence[Piece], *, is_eager: bool = False) -> None:
    """More than are there where that is too few; else as few as will do. What starts is awaited while there is work."""
    pool = want.pool
    ready, starting = state_of(pool)
    need = lacking(pieces, Replicas(ready, starting, speed=pool.speed), pool=pool, is_eager=is_eager)
    rule = "spot" if is_eager else "deadline" if any(piece.has_deadline for piece in pieces) else "backlog"
    if need.replicas:
        want.ask(ready + len(starting) + need.replicas, rule=rule, due_seconds=need.due_seconds)
    else:
        enough = fewest(pieces, pool=pool)
        working = 0 if want.is_sharing else busy_of(pool)
        replicas = max(min(enough.replicas, ready + len(starting)), working + len(starting), 1)
        want.ask(replicas, rule=rule, due_seconds=enough.due_seconds)


def _fall_back(want: Want, pieces: Sequence[Piece], ahead: Sequence[Piece]) -> None:
    """What spot can no longer make; let go when spot is well ahead."""
    pool, firm = want.pool, want.replicas
    ready, starting = state_of(pool)
    live = ready + len(starting)
    free_ready = max(0, ready - firm)
    free_starting = starting[max(0, firm - ready) :]
    free = Replicas(free_ready, free_starting, speed=pool.speed)
    need = lacking(urgent(pieces, pool=pool), free, pool=pool)
    if need.replicas:
        want.ask(max(live, firm) + need.replicas, rule="fallback", due_seconds=need.due_seconds)
    elif live > firm and ahead:
        enough = fewest(ahead, pool=pool)
        want.ask(firm + min(enough.replicas, live - firm), rule="fallback", due_seconds=enough.due_seconds)
    want.fallback = want.replicas - firm


def _settle(want: Want) -> None:
    """What is there and not needed: kept, or let go."""
    pool = want.pool
    needed = max(want.replicas, min(pool.minimum, pool.maximum))
    stays = surplus(pool, needed=needed, hands_over=want.is_sharing)
    kept = min(stays.replicas, pool.maximum)
    if kept > needed:
        want.rule, want.wait_seconds = "idle", stays.leaves_in_seconds
    elif needed > want.replicas:
        want.rule = "minimum"
    want.replicas = kept


def _count_unmeetable(wants: Mapping[str, Want], firm: Sequence[Piece], movable: Sequence[Piece]) -> None:
    """Tell of what comes too late whoever does it, were all on-demand replicas asked for now that there may be: to an
    on-demand pool, if there is one for it."""
    order = sorted(wants.values(), key=lambda want: want.pool.capacity == "spot")
    left: Sequence[Piece] = movable
    for want in order:
        most = replace(want, replicas=want.pool.maximum) if want.pool.capacity == "on_demand" else want
        capacity = Spare(most.capacity(), want.taken)
        left = _split(left, want.pool)[1] if want.rule == "hold" else _without(left, want.pool, capacity)
    for piece in (*firm, *left):
        if piece.has_deadline and not piece.is_forecast:
            next(want for want in order if want.pool.name in piece.servers).unmeetable_jobs += piece.jobs


def _split(pieces: Sequence[Piece], pool: Pool) -> tuple[list[Piece], list[Piece]]:
    """What this pool may do, and the rest. Of forecasts only what is due soon."""
    soon = FORECAST_STARTS * pool.cold_start_seconds
    mine: list[Piece] = []
    left: list[Piece] = []
    for piece in pieces:
        is_mine = pool.name in piece.servers and not (piece.is_forecast and piece.due_seconds > soon)
        (mine if is_mine else left).append(piece)
    return mine, left


def _without(pieces: Sequence[Piece], pool: Pool, capacity: Replicas | Spare) -> list[Piece]:
    mine, left = _split(pieces, pool)
    return _merged(left, rest_of(mine, capacity))


def _merged(one: list[Piece], other: list[Piece]) -> list[Piece]:
    return sorted(one + other, key=by_deadline)


def _total(pieces: Sequence[Piece]) -> float:
    return sum(piece.work_seconds for piece in pieces)
