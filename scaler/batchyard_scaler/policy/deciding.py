"""The policy: how many replicas each pool of a fleet should have, and why. Pure, and the same for production and the
simulator."""

from __future__ import annotations

import msgspec

from batchyard_scaler.policy.budget import ceilings
from batchyard_scaler.policy.checking import check
from batchyard_scaler.policy.choice import markets
from batchyard_scaler.policy.explaining import reason
from batchyard_scaler.policy.market import Want, size
from batchyard_scaler.policy.records import Decision, Fleet, Pool
from batchyard_scaler.policy.spot import spread
from batchyard_scaler.policy.work import Piece, pieces_of


def decide(fleet: Fleet) -> list[Decision]:
    """How many replicas each pool should have, in the order of the fleet's pools; ContradictoryFleet where it cannot
    be as it is told."""
    check(fleet)
    pools = [_as_set_by_hand(pool) for pool in fleet.pools]
    pieces = pieces_of(fleet, pools)
    wants = _size(pools, pieces)
    most = ceilings(wants, budget=fleet.budget)
    if most is not None:
        asked = {want.pool.name: want.replicas for want in wants}
        wants = _size([msgspec.structs.replace(pool, maximum=most[pool.name]) for pool in pools], pieces)
        for want in wants:
            if most[want.pool.name] < asked[want.pool.name]:
                want.rule = "budget"
    found = {want.pool.name: want for want in wants}
    return [_decision(found[pool.name], pool, fleet) for pool in fleet.pools]


def _as_set_by_hand(pool: Pool) -> Pool:
    """With the limits that a pin or a pause leaves."""
    if pool.is_paused:
        return msgspec.structs.replace(pool, minimum=0, maximum=0)
    if pool.pinned is not None:
        fixed = min(pool.pinned, pool.maximum)
        return msgspec.structs.replace(pool, minimum=fixed, maximum=fixed)
    return pool


def _size(pools: list[Pool], pieces: list[Piece]) -> list[Want]:
    groups = markets(pools)
    group_of = {pool.name: index for index, group in enumerate(groups) for pool in group}
    pieces_of_group: list[list[Piece]] = [[] for _ in groups]
    for piece in pieces:
        pieces_of_group[group_of[next(iter(piece.servers))]].append(piece)
    return [want for group, mine in zip(groups, pieces_of_group, strict=True) for want in size(group, mine)]


def _decision(want: Want, pool: Pool, fleet: Fleet) -> Decision:
    """`pool` is as it was told: with its own limits."""
    if pool.is_paused:
        want.rule, want.replicas = "paused", 0
    elif pool.pinned is not None:
        want.rule, want.replicas = "pinned", want.pool.maximum
    elif not want.replicas and pool.never_loaded and want.pool.maximum:
        want.rule, want.replicas = "load", 1
    return Decision(
        pool=pool.name,
        replicas=want.replicas,
        rule=want.rule,
        reason=reason(want, pool, fleet=fleet),
        binding_deadline_seconds=want.due_seconds,
        unmeetable_jobs=round(want.unmeetable_jobs),
        work_seconds=want.work_seconds,
        zones=spread(pool, replicas=want.replicas) if pool.capacity == "spot" else {},
        next_look_seconds=want.wait_seconds,
    )
