"""The system at one moment as tables: what `status` prints and `top` keeps showing. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from batchyard import schemas
from batchyard.cli.figures import count, money, percent, rate, seconds

LIVE = {"starting", "ready", "draining"}


WIDE = 110
"""Columns of a terminal that hold all of the queues' figures."""


def dashboard(status: schemas.Status, *, width: int = WIDE) -> RenderableType:
    """Everything; a narrow terminal is spared the lesser figures."""
    live = [consumer for pool in status.pools for consumer in pool.consumers if consumer.state in LIVE]
    loaded = loaded_by(live)
    queues = queues_table(status.queues, loaded=loaded, is_wide=width >= WIDE)
    parts: list[RenderableType] = [headline(status), Text(), queues]
    broken = {queue.model: queue.load_error for queue in status.queues if queue.load_error}
    parts += [_load_error(model, error, is_loaded=model in loaded) for model, error in broken.items()]
    parts += [Text(), pools_table(status.pools)]
    if live:
        parts += [Text(), consumers_table(live)]
    if batches := batches_of(live):
        parts += [Text(), batches_table(batches)]
    parts += [_from_cache(model, hits, misses) for model, (hits, misses) in sorted(cached_by(live).items())]
    return Group(*parts)


def headline(status: schemas.Status) -> Text:
    text = Text()
    text.append(f"batchyard {status.version}", style="bold")
    text.append(f"  {status.time[:19]}Z  {status.database}  broker ")
    text.append(status.broker, style="green" if status.broker == "up" else "bold red")
    return text


def loaded_by(consumers: Iterable[schemas.Consumer]) -> set[str]:
    """The models, as `model@version`, that some consumer has told it has loaded."""
    return {
        name
        for consumer in consumers
        for name, stats in _models_of(consumer).items()
        if isinstance(stats, dict) and stats.get("loaded") is True
    }


def _load_error(model: str, error: str, *, is_loaded: bool) -> Text:
    """One consumer's failure is no word about a model that others serve."""
    if is_loaded:
        return Text(f"{model} is served, though a consumer could not load it: {error}", style="yellow")
    return Text(f"{model} cannot be loaded: {error}", style="red")


def queues_table(queues: Iterable[schemas.QueueStatus], *, loaded: Container[str], is_wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("queue", overflow="fold")
    lesser = ("waiting", "backlog", "oldest") if is_wide else ()
    for name in ("queued", "running", "succeeded", "failed", "rate", *lesser):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("served by")
    for queue in queues:
        total = queue.queued + queue.running + queue.waiting + sum(queue.finished.values())
        if not total and queue.lane != "firm" and not queue.consumers:
            continue
        figures = [
            count(queue.queued),
            count(queue.running),
            count(queue.finished.get("succeeded", 0)),
            count(queue.finished.get("failed", 0)),
            rate(queue.jobs_per_second),
        ]
        if is_wide:
            figures += [count(queue.waiting), seconds(queue.backlog_seconds), seconds(queue.oldest_queued_seconds)]
        table.add_row(f"{queue.model} {queue.lane}", *figures, _served_by(queue, is_loaded=queue.model in loaded))
    return table


def _served_by(queue: schemas.QueueStatus, *, is_loaded: bool) -> Text:
    if queue.paused:
        return Text("paused", style="yellow")
    if queue.load_error and not is_loaded:
        return Text("cannot load", style="red")
    if queue.consumers or queue.starting:
        starting = f" + {queue.starting} starting" if queue.starting else ""
        return Text(f"{queue.consumers} consumer{'s' if queue.consumers != 1 else ''}{starting}")
    return Text("nobody", style="yellow" if queue.queued else "dim")


def pools_table(pools: Iterable[schemas.Pool]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pool", "capacity", "device", "models"):
        table.add_column(name)
    for name in ("live", "min", "max", "this month"):
        table.add_column(name, justify="right")
    table.add_column("decision")
    for pool in pools:
        table.add_row(
            pool.name,
            pool.capacity,
            pool.device,
            " ".join(pool.models),
            str(sum(is_live(consumer) for consumer in pool.consumers)),
            str(pool.min),
            str(pool.max),
            "–" if pool.spent is None else cost(pool.spent.dollars_this_month, pool.spent.hours_this_month),
            decision_text(pool),
        )
    return table


def is_live(consumer: schemas.Consumer) -> bool:
    return consumer.state in LIVE


def cost(dollars: float | None, consumer_hours: float) -> str:
    """Money where there is a price, else hours of consumers."""
    return f"{consumer_hours:,.2f} h" if dollars is None else money(dollars)


def decision_text(pool: schemas.Pool) -> Text:
    """What a scaler wants of the pool and why, with what people fixed; a stale decision is nobody's word any more."""
    made, fixed = pool.decision, ""
    if pool.paused or pool.pinned is not None:
        fixed = "paused" if pool.paused else f"pinned to {pool.pinned}"
    if made is None:
        return Text(fixed, style="yellow")
    rule = f"{made.rule}: " if made.rule else ""
    text = f"{made.replicas}: {rule}{made.reason} ({seconds(made.age_seconds)} ago)"
    if made.stale:
        return Text(f"stale: {text}", style="yellow")
    return Text(text, style="red" if made.unmeetable_jobs else "yellow" if fixed else "")


def consumers_table(consumers: Iterable[schemas.Consumer]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("consumer", "pool", "state", "host"):
        table.add_column(name)
    for name in ("pid", "rate", "device busy", "held"):
        table.add_column(name, justify="right")
    for consumer in consumers:
        stats = consumer.stats
        state = "preempted" if consumer.preempted_at is not None else consumer.state
        table.add_row(
            consumer.id[-8:],
            consumer.pool,
            Text(state, style={"ready": "green", "draining": "yellow", "preempted": "yellow"}.get(state, "")),
            consumer.host,
            str(consumer.pid),
            rate(_number(stats.get("jobs_per_second"))),
            percent(_number(stats.get("device_busy"))),
            count(_held(stats.get("held"))),
        )
    return table


def batches_of(consumers: Iterable[schemas.Consumer]) -> dict[str, list[dict[str, Any]]]:
    """By model, what each consumer that has run batches of it says of them."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for consumer in consumers:
        for name, stats in _models_of(consumer).items():
            if isinstance(stats, dict) and stats.get("batches"):
                found[name].append(stats)
    return dict(found)


def batches_table(found: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("batches of")
    for name in ("batches", "jobs in one", "budget", "fill", "padding", "mean cost", "per job"):
        table.add_column(name, justify="right")
    table.add_column("closed")
    for name, stats in sorted(found.items()):
        total = sum(each["batches"] for each in stats)
        mean = sum(each["batches"] * (_number(each.get("batch_size")) or 0.0) for each in stats) / total
        first = stats[0]
        per_job = _number(first.get("seconds_per_job"))
        table.add_row(
            name,
            count(total),
            f"{mean:,.1f}",
            count(_number(first.get("budget"))),
            percent(_number(first.get("fill"))),
            percent(_number(first.get("padding"))),
            count(_number(first.get("mean_cost"))),
            "–" if per_job is None else f"{per_job * 1000:,.2f} ms",
            _closed(stats),
        )
    return table


def _closed(stats: list[dict[str, Any]]) -> str:
    """Why batches closed, the most frequent reason first."""
    counts: Counter[str] = Counter()
    for each in stats:
        reasons = each.get("closed")
        counts.update({str(reason): number for reason, number in reasons.items()} if isinstance(reasons, dict) else {})
    total = sum(counts.values())
    return ", ".join(f"{reason} {percent(number / total)}" for reason, number in counts.most_common())


def cached_by(consumers: Iterable[schemas.Consumer]) -> dict[str, tuple[float, float]]:
    """By model with a cache: jobs that were served from it, and that were computed."""
    found: dict[str, tuple[float, float]] = {}
    for consumer in consumers:
        for name, stats in _models_of(consumer).items():
            told = stats.get("cache") if isinstance(stats, dict) else None
            if isinstance(told, dict) and told:
                hits, misses = found.get(name, (0.0, 0.0))
                found[name] = hits + (_number(told.get("hit")) or 0), misses + (_number(told.get("miss")) or 0)
    return found


def _from_cache(model: str, hits: float, misses: float) -> Text:
    share = percent(hits / (hits + misses)) if hits + misses else "none"
    return Text(f"{model}: {share} of {count(hits + misses)} jobs were served from the cache")


def _models_of(consumer: schemas.Consumer) -> dict[str, Any]:
    models = consumer.stats.get("models")
    return models if isinstance(models, dict) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _held(stages: Any) -> float | None:
    return sum(_number(jobs) or 0 for jobs in stages.values()) if isinstance(stages, dict) else None
