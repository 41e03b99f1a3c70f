"""Spot replicas: where they go, whether one that is asked for can be counted on, and how many more than needed."""

from __future__ import annotations

from collections.abc import Sequence

from batchyard_scaler.policy.demand import lacking
from batchyard_scaler.policy.records import Pool, Zone
from batchyard_scaler.policy.work import Piece, Replicas

LEAST_WAIT_STARTS, MOST_WAIT_STARTS = 2.0, 4.0
WAIT_SHARE = 0.25
"""On-demand replicas take over what spot has not done a quarter of the usual slack before their own latest safe start,
but two starts before it at the least and four at the most; and are let go once spot is ahead by as much. The later, the
more spot may still do; the earlier, the fewer replicas do it, and the longer each works for its start."""
MANY = 10
"""From so many replicas on, two may go at once."""


def wait_seconds(pool: Pool) -> float:
    """How long before its own latest safe start an on-demand pool takes over from spot."""
    least, most = LEAST_WAIT_STARTS * pool.cold_start_seconds, MOST_WAIT_STARTS * pool.cold_start_seconds
    return min(most, max(least, WAIT_SHARE * (pool.usual_slack_seconds or 0.0)))


def is_calm(zone: Zone, *, pool: Pool) -> bool:
    """Neither refused a replica lately nor took one: the more it took within the hour, the longer it is avoided."""
    start = pool.cold_start_seconds
    back_off = start * 2 ** min(zone.preemptions - 1, 4) if zone.preemptions else 0.0
    return zone.preempted_ago_seconds >= back_off and zone.refused_ago_seconds >= start


def can_count_on_starts(pool: Pool) -> bool:
    """Whether a replica that is asked for now is likely to come."""
    return not pool.zones or any(is_calm(zone, pool=pool) for zone in pool.zones)


def spread(pool: Pool, *, replicas: int) -> dict[str, int]:
    """So many replicas by zone: those that are there stay, new ones go to calm zones, the emptiest first."""
    if not pool.zones:
        return {}
    here = {zone.name: 0 for zone in pool.zones}
    for replica in pool.replicas:
        if replica.state != "draining" and replica.zone in here:
            here[replica.zone] += 1
    calm = [zone.name for zone in pool.zones if is_calm(zone, pool=pool)]
    rough = [name for name in here if name not in calm]
    for _ in range(replicas - sum(here.values())):
        here[min(calm or rough, key=here.__getitem__)] += 1
    for _ in range(sum(here.values()) - replicas):
        leaving = [name for name in rough if here[name]] or calm
        here[max(leaving, key=here.__getitem__)] -= 1
    return here


def over_provision(pool: Pool, pieces: Sequence[Piece], *, replicas: int) -> int:
    """One or two more, where work would be late if as many went just now: none where the slack covers a new start."""
    ready = pool.count("ready")
    lost = min(ready, 2 if replicas >= MANY else 1)
    if not lost:
        return 0
    starting = [replica.ready_in_seconds for replica in pool.replicas if replica.state == "starting"]
    starting += [pool.cold_start_seconds] * (replicas - ready - len(starting))
    return lost if lacking(pieces, Replicas(ready - lost, starting, speed=pool.speed), pool=pool).replicas else 0


def urgent(pieces: Sequence[Piece], *, pool: Pool) -> Sequence[Piece]:
    """The work that can no longer wait for spot: what an on-demand pool, all of it, must begin now or within
    `wait_seconds`, and what is due before it."""
    last = total = 0.0
    most = max(1, pool.maximum) * pool.speed
    ahead = pool.cold_start_seconds + wait_seconds(pool)
    until = 0
    for index, piece in enumerate(pieces, 1):
        total += piece.work_seconds
        last = piece.due_seconds - ahead - total / most
        if last <= 0:
            until = index
    return pieces[:until]
