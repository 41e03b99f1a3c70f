"""`make bench-scaler`: what sizing pools costs, ours beside its peers and the clairvoyant bound; and how long it takes.

Replays are deterministic for a seed: only the last two rows depend on the machine.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import msgspec
import numpy as np

from batchyard.spot_trace import Spot, read_spot
from batchyard_scaler.policy.records import Pool, Zone
from batchyard_scaler.simulator import peers
from batchyard_scaler.simulator.comparing import Comparison, compare
from batchyard_scaler.simulator.generators import from_rates, sparse
from batchyard_scaler.simulator.measures import Measures
from batchyard_scaler.simulator.peers import OURS, Contender
from batchyard_scaler.simulator.rare import least_over_work
from batchyard_scaler.simulator.reading import Rates, read_jobs
from batchyard_scaler.simulator.report import markdown
from batchyard_scaler.simulator.service import World
from batchyard_scaler.simulator.trace import Trace
from tests.benchmarks import burst, deciding

TRACES = Path(__file__).parents[3] / "shared/data/traces"
ON_TIME = 0.995
PRICE, SPOT_PRICE = 1.0, 0.35
"""Dollars an hour of a replica."""
BURSTS = 3


def main() -> None:
    options = _options()
    with ProcessPoolExecutor() as cores:
        for text in cores.map(_row, [name for name in options.rows if name not in TIMED], repeat(options)):
            print(text, flush=True)
    for name in options.rows:
        if name in TIMED:
            print(_row(name, options), flush=True)


def _row(name: str, options: argparse.Namespace) -> str:
    began = time.process_time()
    lines = [f"== {name}: {ROWS[name].__doc__}\n", *ROWS[name](options)]
    return "\n".join([*lines, f"\n{time.process_time() - began:.0f} s of CPU\n"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-scaler", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"what to replay, of {', '.join(ROWS)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=5, help="of the sparse rows, of which the worst counts (default: %(default)s)"
    )
    parser.add_argument("--alone", action="store_true", help="without the peers of servegen, azure and sparse rows")
    parser.add_argument("--days", type=int, default=14, help="of the servegen rows, 14 at the most")
    parser.add_argument(
        "--deep", type=int, default=1_000_000, help="queued jobs of the decision row (default: %(default)s)"
    )
    options = parser.parse_args()
    options.rows = options.rows or list(ROWS)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row named {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if not TRACES.is_dir() and {"servegen", "azure", "preempted"} & set(options.rows):
        sys.exit(f"The rows servegen, azure and preempted need the public traces of {TRACES}, which are not there.")
    return options


# --- rows -------------------------------------------------------------------------------------------------------------


def _servegen(options: argparse.Namespace) -> Iterator[str]:
    """m-large at a mean demand of 20 replicas, 30 s a job, half due in 15 min and half in 4 h, c = 300 s, with spot"""
    trace = _m_large(days=options.days, seed=options.seed)
    contenders = [
        peers.ours(),
        peers.fixed(replicas=_peak_replicas(trace)),
        peers.keda(length=1),
        peers.keda(length=5),
        peers.backlog_per_instance(jobs=10),
        peers.backlog_per_instance(jobs=20),
        peers.ray(),
    ]
    spot = _bamboo()
    pools = [_pool(trace, cold_start=300), _pool(trace, cold_start=300, zones=list(spot))]
    found = _compare(trace, pools, contenders[: 1 if options.alone else None], spot=spot, seed=options.seed)
    yield from _against_bound(found, most=1.15)


def _azure(options: argparse.Namespace) -> Iterator[str]:
    """azure-llm-2023 (conversations) at a mean demand of 20 replicas, all due in 15 min, c = 60 s, no spot"""
    trace = _conversations(seed=options.seed)
    seconds = float(trace.work_seconds.mean())
    contenders = [
        peers.ours(),
        peers.fixed(replicas=_peak_replicas(trace)),
        peers.keda(length=1),
        peers.keda(length=5),
        *(peers.backlog_per_instance(jobs=round(share * (900 - 60) / seconds)) for share in (0.25, 0.5)),
        peers.ray(),
    ]
    contenders = contenders[: 1 if options.alone else None]
    found = _compare(trace, [_pool(trace, cold_start=60)], contenders, seed=options.seed, step_seconds=30)
    yield from _against_bound(found, most=1.1)


def _sparse_60(options: argparse.Namespace) -> Iterator[str]:
    """80 models, each on replicas of its own, all due in 1 h, c = 60 s"""
    yield from _sparse(options, cold_start=60, most=1.35)


def _sparse_300(options: argparse.Namespace) -> Iterator[str]:
    """80 models, each on replicas of its own, all due in 1 h, c = 300 s"""
    yield from _sparse(options, cold_start=300, most=2.75)


def _shared(options: argparse.Namespace) -> Iterator[str]:
    """the same 80 models on replicas that serve all of them, c = 300 s, 23 s to swap a model"""
    contenders = [peers.hold(seconds=1200), peers.keda(length=5), peers.backlog_per_instance(jobs=50), peers.ray()]

    def pools(trace: Trace) -> list[Pool]:
        return [msgspec.structs.replace(_pool(trace, cold_start=300), swap_seconds=23.0)]

    yield from _worst_of(options, pools, contenders, most=1.35)


def _preempted(options: argparse.Namespace) -> Iterator[str]:
    """spot capacity of bamboo, its preemptions with 30 s of notice: nothing lost, and no more starts than the peer's"""
    for trace, cold_start, swap in (
        (_m_large(days=min(3, options.days), seed=options.seed), 300.0, 0.0),
        (_conversations(seed=options.seed), 60.0, 0.0),
        (sparse(days=4, jobs=4_700, seed=options.seed), 300.0, 23.0),
    ):
        spot = _bamboo()
        on_demand, on_spot = (
            msgspec.structs.replace(_pool(trace, cold_start=cold_start, zones=zones), swap_seconds=swap)
            for zones in ((), list(spot))
        )
        slack = float((trace.due_at - trace.arrive_at).min())
        jobs = round((slack - cold_start) / 2 / float(trace.work_seconds.mean()))
        contenders = [peers.ours(), peers.backlog_falling_back(jobs=jobs)]
        both = _compare(trace, [on_demand, on_spot], contenders, spot=spot, bound=False)
        alone = _compare(trace, [on_spot], [peers.backlog_per_instance(jobs=jobs)], spot=spot, bound=False)
        found = msgspec.structs.replace(both, measures=[*both.measures, *alone.measures])
        yield markdown(found)
        mine = found.measures[0]
        yield f"Jobs lost: {mine.lost_jobs}. On time: {mine.on_time_jobs:.2%}. Preempted: {mine.preemptions:,}."
        for peer in found.measures[1:]:
            yield (
                f"Starts: {mine.starts:,}; {peer.contender}: {peer.starts:,}, with {peer.on_time_jobs:.2%} on time. "
                + _verdict(
                    "no job lost, no more starts than the peer's",
                    mine.lost_jobs == 0 and mine.on_time_jobs >= ON_TIME and mine.starts <= peer.starts,
                )
            )
        yield ""


def _deciding(options: argparse.Namespace) -> Iterator[str]:
    """one round of decisions, and /metrics, with 200 queues and a million queued jobs"""
    for name, took in deciding.measure(queues=200, jobs=options.deep):
        verdict = _verdict("≤ 50 ms", took.median_ms <= 50)
        yield f"{name}: median {took.median_ms:.1f} ms, of which {took.cpu_ms:.1f} ms of CPU. {verdict}"


def _burst(options: argparse.Namespace) -> Iterator[str]:
    """`batchyard up` with one warm consumer and room for another, 400 jobs of 50 ms at once: when the other starts"""
    del options
    took = sorted(burst.measure(rounds=BURSTS))
    yield (
        f"Started after {', '.join(f'{seconds:.2f}' for seconds in took)} s. "
        + _verdict("first extra consumer started ≤ 2 s after the burst", took[-1] <= 2)
    )


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "servegen": _servegen,
    "sparse-60": _sparse_60,
    "sparse-300": _sparse_300,
    "shared": _shared,
    "azure": _azure,
    "preempted": _preempted,
    "deciding": _deciding,
    "burst": _burst,
}

TIMED = {"deciding", "burst"}
"""They have the machine to themselves."""


# --- what they have in common -----------------------------------------------------------------------------------------


def _sparse(options: argparse.Namespace, *, cold_start: float, most: float) -> Iterator[str]:
    contenders = [
        peers.hold(seconds=600),
        peers.fixed(replicas=1),
        peers.keda(length=1),
        peers.keda(length=5),
        peers.keda(length=5, cooldown_seconds=0),
        peers.backlog_per_instance(jobs=20),
        peers.ray(),
    ]

    def pools(trace: Trace) -> list[Pool]:
        return [
            msgspec.structs.replace(_pool(trace, cold_start=cold_start), name=model, models=frozenset([model]))
            for model in trace.models
        ]

    yield from _worst_of(options, pools, contenders, most=most)
    seeds = range(options.seed, options.seed + options.seeds)
    strict, lenient = (
        max(least_over_work(sparse(seed=seed), cold_start_seconds=cold_start, late_share=share) for seed in seeds)
        for share in (0.0, 1 - ON_TIME)
    )
    yield (
        f"On the worst of these seeds no plan that knows all beforehand costs less than {strict:.3f} × the work if all "
        f"jobs are to be on time, and none less than {lenient:.3f} × if {1 - ON_TIME:.1%} may be late."
    )


def _worst_of(
    options: argparse.Namespace,
    pools: Callable[[Trace], list[Pool]],
    contenders: Sequence[Contender],
    *,
    most: float,
) -> Iterator[str]:
    """Ours on every seed, and its peers on the first."""
    found: list[Measures] = []
    for seed in range(options.seed, options.seed + options.seeds):
        trace = sparse(seed=seed)
        others = contenders if seed == options.seed and not options.alone else []
        one = _compare(trace, pools(trace), [peers.ours(), *others], seed=seed, bound=False)
        mine = one.measures[0]
        found.append(mine)
        if others:
            yield markdown(one)
        yield f"Seed {seed}: {mine.cost_over_work:.3f} × the work, {mine.on_time_jobs:.2%} on time."
    worst = max(found, key=lambda m: m.cost_over_work)
    on_time = min(mine.on_time_jobs for mine in found)
    yield (
        f"Worst of {len(found)} seeds: {worst.cost_over_work:.3f} × the work, and {on_time:.2%} on time. "
        + _verdict(f"≤ {most:g} × at ≥ {ON_TIME:.1%} on time", worst.cost_over_work <= most and on_time >= ON_TIME)
    )


def _against_bound(found: Comparison, *, most: float) -> Iterator[str]:
    mine = next(measures for measures in found.measures if measures.contender == OURS)
    over = found.over_bound(mine) or math.inf
    yield markdown(found)
    target = f"≤ {most:g} × the bound at ≥ {ON_TIME:.1%} on time"
    yield (
        f"{OURS}: {over:.3f} × the bound, {mine.on_time_jobs:.2%} on time. "
        + _verdict(target, over <= most and mine.on_time_jobs >= ON_TIME)
    )


def _verdict(target: str, is_reached: bool) -> str:
    return f"Target {target}: {'reached' if is_reached else 'NOT reached'}."


def _compare(
    trace: Trace,
    pools: Sequence[Pool],
    contenders: Sequence[Contender],
    *,
    spot: Spot | None = None,
    seed: int = 0,
    bound: bool = True,
    step_seconds: float = 300.0,
) -> Comparison:
    spans = np.unique(np.round(trace.due_at - trace.arrive_at))
    first = pools[0]
    return compare(
        trace,
        pools=pools,
        contenders=contenders,
        spot=spot or {},
        world=World(seed=seed),
        with_bound=bound,
        step_seconds=step_seconds,
        assumptions={
            "μ": f"{1 / trace.work_seconds.mean():.4g} jobs/s a replica",
            "c": f"{first.cold_start_seconds:g} s",
            "deadlines": " and ".join(f"{span:,.0f} s" for span in spans),
            "price": f"${PRICE:g} an hour" + (f", spot ${SPOT_PRICE:g}" if spot else ""),
            **({"spot zones": ", ".join(spot)} if spot else {}),
            **({"swap": f"{first.swap_seconds:g} s"} if first.swap_seconds else {}),
            "seed": str(seed),
        },
    )


def _pool(trace: Trace, *, cold_start: float, zones: Sequence[str] = ()) -> Pool:
    return Pool(
        name="spot" if zones else "on-demand",
        capacity="spot" if zones else "on_demand",
        models=frozenset(trace.models),
        minimum=0,
        maximum=200,
        price_per_hour=SPOT_PRICE if zones else PRICE,
        cold_start_seconds=cold_start,
        restart_cost_seconds=cold_start,
        zones=[Zone(name=zone) for zone in zones],
    )


def _m_large(*, days: int, seed: int) -> Trace:
    read = read_jobs(TRACES / "servegen/servegen_rate_600s_by_model.csv.gz")
    assert isinstance(read, Rates)
    rates = read.by_model["m-large"]
    scale = float(rates.mean())
    kept = rates[: round(days * 86_400 / read.step_seconds)]
    return from_rates(
        kept,
        name="servegen m-large",
        step_seconds=read.step_seconds,
        job_seconds=30.0,
        deadlines=(900.0, 14_400.0),
        mean_demand=20.0 * float(kept.mean()) / scale,
        seed=seed,
    )


def _conversations(*, seed: int) -> Trace:
    read = read_jobs(TRACES / "azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz")
    assert isinstance(read, Trace)
    seconds = 20.0 * read.seconds / len(read)
    return replace(
        read, work_seconds=np.full(len(read), seconds), due_at=read.arrive_at + 900.0, name="azure-llm-2023 conv"
    )


def _bamboo() -> Spot:
    """The zones of Bamboo's EC2 log whose counts were watched over hours."""
    return {
        zone: read_spot(next((TRACES / "bamboo").glob(f"aws-spot-instances-{pattern}*.csv")), zone=zone)
        for zone, pattern in {
            "us-east-1c": "g4dn-xlarge-us-east-1c",
            "us-east-1d": "g4dn-xlarge-us-east-1d",
            "p2": "p2",
        }.items()
    }


def _peak_replicas(trace: Trace) -> int:
    """What keeps up with the busiest quarter of an hour: the fixed number that a careful operator would choose."""
    quarter = np.bincount((trace.arrive_at // 900).astype(int), weights=trace.work_seconds)
    return math.ceil(float(quarter.max()) / 900)


if __name__ == "__main__":
    main()
