"""Traces made from a seed, and from rates: the same seed gives the same jobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from batchyard_scaler.simulator.trace import Floats, Trace

DAY = 86_400.0
HOUR = 3600.0
P90 = 1.2815515655446004
"""The standard normal distribution's 90 % point."""


def from_rates(
    rates: Floats,
    *,
    name: str,
    step_seconds: float,
    job_seconds: float,
    deadlines: Sequence[float],
    mean_demand: float | None = None,
    seed: int = 0,
) -> Trace:
    """Poisson arrivals at a rate that is constant within each step, each deadline for an equal share of the jobs.

    `mean_demand`: scale the rates, so that the work keeps so many replicas busy in the mean.
    """
    random = np.random.default_rng(seed)
    scale = 1.0 if mean_demand is None else mean_demand / (float(rates.mean()) * job_seconds)
    counts = random.poisson(rates * scale * step_seconds)
    begins = np.repeat(np.arange(len(rates)) * step_seconds, counts)
    arrive_at = np.sort(begins + random.random(len(begins)) * step_seconds)
    return _one_model(
        name=name,
        arrive_at=arrive_at,
        work_seconds=np.full(len(arrive_at), job_seconds),
        deadlines=random.choice(np.asarray(deadlines), len(arrive_at)),
        seconds=len(rates) * step_seconds,
    )


def diurnal(
    *,
    days: float = 7.0,
    mean_demand: float = 20.0,
    swing: float = 0.6,
    job_seconds: float = 30.0,
    deadlines: Sequence[float] = (900.0, 14_400.0),
    seed: int = 0,
) -> Trace:
    """A day's wave: the rate goes up and down by `swing` of its mean, lowest at midnight."""
    at = np.arange(0.0, days * DAY, 300.0)
    rates = 1 - swing * np.cos(2 * math.pi * at / DAY)
    return from_rates(
        rates,
        name="diurnal",
        step_seconds=300.0,
        job_seconds=job_seconds,
        deadlines=deadlines,
        mean_demand=mean_demand,
        seed=seed,
    )


def bursts(
    *,
    days: float = 2.0,
    mean_demand: float = 20.0,
    height: float = 10.0,
    job_seconds: float = 30.0,
    deadlines: Sequence[float] = (900.0,),
    seed: int = 0,
) -> Trace:
    """A quiet stream, and every two hours or so ten minutes at `height` times its rate."""
    random = np.random.default_rng(seed + 1)
    steps = int(days * DAY / 60.0)
    rates = np.ones(steps)
    begin = 0.0
    while (begin := begin + random.exponential(2 * HOUR)) < days * DAY:
        rates[int(begin / 60.0) : int(begin / 60.0) + 10] = height
    return from_rates(
        rates,
        name="bursts",
        step_seconds=60.0,
        job_seconds=job_seconds,
        deadlines=deadlines,
        mean_demand=mean_demand,
        seed=seed,
    )


def bulk(
    *, jobs: int = 20_000, job_seconds: float = 30.0, deadlines: Sequence[float] = (4 * HOUR,), seed: int = 0
) -> Trace:
    """Everything at once, ten minutes after the beginning."""
    random = np.random.default_rng(seed)
    return _one_model(
        name="bulk",
        arrive_at=np.full(jobs, 600.0),
        work_seconds=np.full(jobs, job_seconds),
        deadlines=random.choice(np.asarray(deadlines), jobs),
        seconds=600.0 + max(deadlines),
    )


def sparse(
    *, models: int = 80, jobs: int = 27_000, days: float = 23.0, deadlines: Sequence[float] = (HOUR,), seed: int = 0
) -> Trace:
    """Many models that are rarely used: users come in sessions, most of them for a few models.

    A session is of one model, Zipf(1.1) by rank, has a geometric number of jobs of mean 3.4, whose gaps are
    exponential with mean 90 s. Sessions begin at a rate that goes up and down by 60 % over the day. Run times are
    log-normal with p50 23 s and p90 53 s.
    """
    random = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, models + 1) ** 1.1
    lengths = random.geometric(1 / 3.4, jobs)
    sessions = int(np.searchsorted(np.cumsum(lengths), jobs)) + 1
    lengths = lengths[:sessions]
    begins = _wave(random, sessions, days=days, swing=0.6)
    session = np.repeat(np.arange(sessions), lengths)[:jobs]
    gaps = random.exponential(90.0, jobs)
    is_first = np.concatenate([[True], session[1:] != session[:-1]])
    gaps[is_first] = 0.0
    since = np.cumsum(gaps)
    arrive_at = begins[session] + since - since[is_first][session]
    model = random.choice(models, sessions, p=popularity / popularity.sum())[session]
    order = np.argsort(arrive_at, kind="stable")
    trace = _one_model(
        name="sparse",
        arrive_at=arrive_at[order],
        work_seconds=random.lognormal(math.log(23.0), math.log(53 / 23) / P90, jobs),
        deadlines=random.choice(np.asarray(deadlines), jobs),
        seconds=max(days * DAY, float(arrive_at.max()) + 1.0),
    )
    names = tuple(f"model-{rank:02d}@1" for rank in range(1, models + 1))
    return replace(trace, model=model[order], models=names)


GENERATORS: Mapping[str, Callable[..., Trace]] = {"diurnal": diurnal, "bursts": bursts, "bulk": bulk, "sparse": sparse}
"""All take `seed` and `deadlines`."""


def _wave(random: np.random.Generator, count: int, *, days: float, swing: float) -> Floats:
    """Moments at a rate that goes up and down by `swing` over the day, lowest at midnight; by rejection."""
    found = np.empty(0)
    while len(found) < count:
        at = random.random(2 * count) * days * DAY
        rate = 1 - swing * np.cos(2 * math.pi * at / DAY)
        found = np.concatenate([found, at[random.random(len(at)) * (1 + swing) < rate]])
    return np.sort(found[:count])


def _one_model(*, name: str, arrive_at: Floats, work_seconds: Floats, deadlines: Floats, seconds: float) -> Trace:
    count = len(arrive_at)
    return Trace(
        name=name,
        arrive_at=arrive_at,
        work_seconds=work_seconds,
        due_at=arrive_at + deadlines,
        model=np.zeros(count, dtype=np.int64),
        is_tolerant=np.ones(count, dtype=bool),
        models=("model@1",),
        seconds=seconds,
    )
