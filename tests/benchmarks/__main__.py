"""`make bench`: the whole path beside its peers in one run; medians of several rounds, ratios, CPU, durability."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.benchmarks import bulk, cost, depth, engine, imports, latency, minilm, peers, single
from tests.benchmarks.cpu import calibrate
from tests.benchmarks.loops import measure_loops
from tests.benchmarks.report import Measurement, Row, Wanted


def main() -> None:
    options = _options()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}; {options.rounds} rounds a row, median (range)\n")
    for name in options.rows:
        print(f"== {name}: {ROWS[name].__doc__}", flush=True)
        for line in ROWS[name](options):
            print(line, flush=True)
        print(flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"what to measure, of {', '.join(ROWS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs of the bulk rows (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=int, default=10, help="length of the load of the single row (default: %(default)s)"
    )
    parser.add_argument("--texts", type=int, default=5_000, help="texts of rows with a model (default: %(default)s)")
    parser.add_argument("--compile", choices=("off", "on", "auto"), default="off", help="in the peers row, of auto")
    parser.add_argument(
        "--deep", type=int, default=1_000_000, help="queued jobs of the depth row (default: %(default)s)"
    )
    parser.add_argument("--against", metavar="COMMIT", help="what the cost row compares this checkout with")
    options = parser.parse_args()
    options.rows = options.rows or [row for row in ROWS if row != "cost" or options.against]
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row named {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if "cost" in options.rows and not options.against:
        parser.error("the row cost needs --against COMMIT")
    return options


def _bulk(options: argparse.Namespace) -> Iterator[str]:
    """no-op torch model, bulk over HTTP, 100-byte inputs and results, first submit to last result, all compared"""
    small = max(2_000, options.jobs // 100)
    subjects: dict[str, Callable[[], Measurement]] = {
        "Celery + Redis results": lambda: peers.celery(module="celery_worker", jobs=small),
        "celery-batches + Redis results": lambda: peers.celery(module="celery_batches_worker", jobs=small),
        "Ray Serve task consumer": lambda: peers.ray(jobs=max(1_000, small // 5)),
        "batchyard, SQLite": lambda: bulk.measure(database="sqlite", jobs=options.jobs),
        "batchyard, Postgres": lambda: bulk.measure(database="postgres", jobs=options.jobs),
    }
    return _side_by_side(subjects, rounds=options.rounds)


def _single(options: argparse.Namespace) -> Iterator[str]:
    """one job a request, 64 in flight, durable before the 202, consumers running"""
    return _side_by_side(
        {
            "batchyard, SQLite": lambda: single.measure(database="sqlite", seconds=options.seconds),
            "batchyard, Postgres": lambda: single.measure(database="postgres", seconds=options.seconds),
        },
        rounds=options.rounds,
    )


def _latency(options: argparse.Namespace) -> Iterator[str]:
    """idle system, submit to result by long poll"""
    return _side_by_side(
        {
            "batchyard, SQLite": lambda: latency.measure(database="sqlite", jobs=1_000),
            "batchyard, Postgres": lambda: latency.measure(database="postgres", jobs=1_000),
        },
        rounds=options.rounds,
    )


def _depth(options: argparse.Namespace) -> Iterator[str]:
    """each operation at a deep backlog against a shallow one: ten tenants, three priorities, un-analysed tables"""
    for database in ("sqlite", "postgres"):
        yield from depth.measure(database=database, deep=options.deep)


def _minilm(options: argparse.Namespace) -> Iterator[str]:
    """R in float32: all-MiniLM-L6-v2 through the whole system, over the best of a sweep of loops; beside `encode`"""
    return _embedding(options, dtype="float32", least=0.95)


def _minilm_bf16(options: argparse.Namespace) -> Iterator[str]:
    """R in bfloat16: the same, all in that dtype"""
    return _embedding(options, dtype="bfloat16", least=0.93)


def _embedding(options: argparse.Namespace, *, dtype: str, least: float) -> Iterator[str]:
    inputs = minilm.texts(options.texts)
    folder = minilm.model_folder()
    ratios = []
    for number in range(options.rounds):
        loops = measure_loops(inputs=inputs, folder=folder, dtype=dtype, device="cpu")
        through = minilm.measure_system(inputs=inputs, dtype=dtype)
        ratios.append(through.measured.rate / loops.loop)
        yield (
            f"round {number + 1}: system {through.measured.rate:.0f} texts/s; best loop {loops.loop:.0f} at "
            f"{loops.budget} tokens; encode {loops.encode:.0f} at {loops.encode_batch} texts; least cosine with its "
            f"embeddings {_cosine(through.embeddings, loops.embeddings):.5f}; device busy {through.busy:.2f}"
        )
        yield from Row(name="batchyard, SQLite", rounds=[through.measured]).lines()
        over = through.measured.rate / loops.encode
        yield str(Wanted(what=f"over encode in {dtype}", measured=over, at_least=1.3))
        yield str(Wanted(what="padding waste", measured=through.waste, at_most=0.03))
    yield str(Wanted(what=f"R in {dtype}, median", measured=statistics.median(ratios), at_least=least))


def _peers(options: argparse.Namespace) -> Iterator[str]:
    """auto and float32 through the system, beside `encode` in float32 and infinity over HTTP, 1,024 texts a request"""
    inputs = minilm.texts(options.texts)
    encode = measure_loops(inputs=inputs, folder=minilm.model_folder(), dtype="float32", device="cpu", loop=False)
    full = minilm.measure_system(inputs=inputs)
    auto = minilm.measure_system(inputs=inputs, dtype="auto", compiled=options.compile)
    with peers.infinity(model_folder=minilm.model_folder(), dtype="float32") as url:
        peers.drive_infinity(url, inputs=inputs[:64], size=64)
        infinity = peers.drive_infinity(url, inputs=inputs[::3], size=1_024)
    yield (
        f"float32 {full.measured.rate:.0f} texts/s; auto {auto.measured.rate:.0f} in {auto.form}; "
        f"encode {encode.encode:.0f} at {encode.encode_batch} texts; infinity {infinity.rate:.0f}; "
        f"least cosine of auto with encode {_cosine(auto.embeddings, encode.embeddings):.5f}"
    )
    yield str(Wanted(what="auto over encode in float32", measured=auto.measured.rate / encode.encode, at_least=3.5))
    yield str(Wanted(what="float32 over infinity", measured=full.measured.rate / infinity.rate, at_least=2.5))
    yield str(Wanted(what="auto over infinity", measured=auto.measured.rate / infinity.rate, at_least=5.0))


def _cosine(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The least of any row with its own; rows are of length 1."""
    return float((found * expected).sum(axis=1).min())


def _padding(options: argparse.Namespace) -> Iterator[str]:
    """what batches hold beside their jobs, float32"""
    through = minilm.measure_system(inputs=minilm.texts(options.texts))
    yield str(Wanted(what="padding waste", measured=through.waste, at_most=0.03))


def _mixed(options: argparse.Namespace) -> Iterator[str]:
    """two models on one device under mixed load, against one after the other"""
    for _ in range(options.rounds):
        yield from map(str, engine.mixed(inputs=minilm.texts(options.texts)[::2], device="cpu"))


def _drain(_: argparse.Namespace) -> Iterator[str]:
    """SIGTERM to exit with batches in flight, and what is computed again"""
    yield from map(str, engine.drain())


def _start(options: argparse.Namespace) -> Iterator[str]:
    """process start to first result, against the library loading the model by itself"""
    yield from map(str, engine.start(rounds=max(3, options.rounds), device="cpu"))


def _imports(_: argparse.Namespace) -> Iterator[str]:
    """import batchyard and its Client, in a fresh interpreter"""
    milliseconds, heavy = imports.measure()
    yield f"{milliseconds:.0f} ms; loads {', '.join(sorted(heavy)) or 'neither torch nor celery nor sqlalchemy'}"


def _cost(options: argparse.Namespace) -> Iterator[str]:
    """the no-op pipeline of this checkout against that of a commit, in turn; only with --against"""
    for database in ("sqlite", "postgres"):
        yield from cost.measure(
            against=options.against,
            database=database,
            rounds=options.rounds,
            jobs=options.jobs,
            seconds=options.seconds,
        )


def _side_by_side(subjects: dict[str, Callable[[], Measurement]], *, rounds: int) -> Iterator[str]:
    """Rounds in turn, so that a drift of the machine touches every subject; the first subject is the baseline."""
    measured: dict[str, list[Measurement]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, subject in subjects.items():
            before = calibrate()
            measured[name].append(subject())
            measured[name][-1].extra["calibration_ms"] = (before + calibrate()) / 2
    rows = [Row(name=name, rounds=found) for name, found in measured.items()]
    for row in rows:
        yield from row.lines(baseline=rows[0])


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "bulk": _bulk,
    "single": _single,
    "latency": _latency,
    "depth": _depth,
    "minilm": _minilm,
    "minilm-bf16": _minilm_bf16,
    "peers": _peers,
    "padding": _padding,
    "mixed": _mixed,
    "drain": _drain,
    "start": _start,
    "imports": _imports,
    "cost": _cost,
}

if __name__ == "__main__":
    main()
