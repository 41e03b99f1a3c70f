"""`make bench`: the whole path beside its peers in one run; medians of several rounds, ratios, CPU, durability."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterator, Sequence

from tests.benchmarks import bulk, depth, imports, latency, minilm, peers, single
from tests.benchmarks.cpu import calibrate
from tests.benchmarks.report import Measurement, Row


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
    parser.add_argument("--texts", type=int, default=6_000, help="texts of the minilm row (default: %(default)s)")
    parser.add_argument(
        "--deep", type=int, default=1_000_000, help="queued jobs of the depth row (default: %(default)s)"
    )
    options = parser.parse_args()
    options.rows = options.rows or list(ROWS)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row named {', '.join(unknown)}; there are {', '.join(ROWS)}")
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
    """R: all-MiniLM-L6-v2 in fp32 through the whole system, over the best of a sweep of loops; and in auto"""
    inputs = minilm.texts(options.texts)
    ratios = []
    for round_number in range(options.rounds):
        loops, encode, reference = minilm.measure_loop(inputs=inputs)
        measured, embeddings = minilm.measure_system(inputs=inputs)
        best = max(loops, key=lambda budget: loops[budget])
        ratios.append(measured.rate / loops[best])
        off = float(abs(embeddings - reference).max())
        yield (
            f"round {round_number + 1}: system {measured.rate:.0f} texts/s, "
            f"best loop {loops[best]:.0f} at {best} tokens, "
            f"encode {encode:.0f}; R {ratios[-1]:.3f}; largest difference from the library's embeddings {off:.1e}"
        )
        yield from Row(name="batchyard, SQLite", rounds=[measured]).lines()
        fastest, embeddings = minilm.measure_system(inputs=inputs, dtype="auto")
        cosine = float((embeddings * reference).sum(axis=1).min())
        yield (
            f'with dtype = "auto": {fastest.rate:.0f} texts/s, {fastest.rate / encode:.2f} times encode in float32; '
            f"least cosine with its embeddings {cosine:.4f}"
        )
    yield from _infinity(inputs, rounds=options.rounds)
    yield f"R, median: {sorted(ratios)[len(ratios) // 2]:.3f}"


def _infinity(inputs: Sequence[str], *, rounds: int) -> Iterator[str]:
    with peers.infinity(model_folder=minilm.model_folder(), dtype="float32") as url:
        measured = [peers.drive_infinity(url, inputs=inputs, size=1_024) for _ in range(rounds)]
    yield from Row(name="infinity, 1,024 texts a request", rounds=measured).lines()


def _imports(_: argparse.Namespace) -> Iterator[str]:
    """import batchyard and its Client, in a fresh interpreter"""
    milliseconds, heavy = imports.measure()
    yield f"{milliseconds:.0f} ms; loads {', '.join(sorted(heavy)) or 'neither torch nor celery nor sqlalchemy'}"


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
    "imports": _imports,
}

if __name__ == "__main__":
    main()
