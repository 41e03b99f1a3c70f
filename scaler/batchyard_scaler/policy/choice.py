"""Which pools share work, and which of them is to do it: the one where it costs least."""

from __future__ import annotations

from collections.abc import Sequence

from batchyard_scaler.policy.records import Pool


def markets(pools: Sequence[Pool]) -> list[list[Pool]]:
    """Pools in groups that share no model: what one group does is no concern of another."""
    group_of: dict[str, list[Pool]] = {}
    """By model."""
    for pool in pools:
        joined = [pool]
        for group in {id(group): group for model in pool.models if (group := group_of.get(model))}.values():
            joined += group
        for member in joined:
            group_of.update(dict.fromkeys(member.models, joined))
        if not pool.models:
            group_of[f"no model: {pool.name}"] = joined
    return list({id(group): group for group in group_of.values()}.values())


def cheapest_first(pools: Sequence[Pool], *, work_seconds: float) -> list[Pool]:
    """By what so much work costs on one replica, with its start where none is ready. Where a price is not known, all
    cost the same by the hour."""
    has_prices = all(pool.price_per_hour is not None for pool in pools)

    def cost(pool: Pool) -> tuple[float, float, str]:
        start = 0.0 if pool.count("ready") else pool.cold_start_seconds
        seconds = work_seconds / pool.speed + start
        price = pool.price_per_hour if has_prices and pool.price_per_hour is not None else 1.0
        return price * seconds, seconds, pool.name

    return sorted(pools, key=cost)


def unit_price(pool: Pool) -> float:
    """Of an hour's work on hardware of speed 1."""
    return (1.0 if pool.price_per_hour is None else pool.price_per_hour) / pool.speed
