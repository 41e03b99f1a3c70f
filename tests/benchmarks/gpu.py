"""`make bench-gpu`: the rows of the consumer's engine on a GPU, with what only a GPU has to tell.

On a machine without one it says so and ends with 2. `--device cpu` measures the same rows there, so that they are
tried where there is none.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator

from tests.benchmarks import engine, minilm
from tests.benchmarks.loops import measure_loops
from tests.benchmarks.report import Wanted

LEAST = {"float32": 0.95, "bfloat16": 0.93}
"""R, by dtype."""


def main() -> int:
    options = _options()
    name = _name_of(options.device)
    if name is None:
        print("make bench-gpu needs a CUDA device, and torch finds none on this machine", file=sys.stderr)
        return 2
    print(f"{name}; {options.rounds} rounds a row\n")
    for row in options.rows:
        print(f"== {row}: {ROWS[row].__doc__}", flush=True)
        for line in ROWS[row](options):
            print(line, flush=True)
        print(flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--compile", choices=("off", "on", "auto"), default="off", help="of the rows with a dtype")
    options = parser.parse_args()
    options.rows = options.rows or list(ROWS)
    if unknown := [row for row in options.rows if row not in ROWS]:
        parser.error(f"no row named {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return options


def _name_of(device: str) -> str | None:
    """For people; None where there is no such device."""
    import torch

    if device == "cpu":
        return f"CPU, {torch.get_num_threads()} cores"
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _float32(options: argparse.Namespace) -> Iterator[str]:
    """R in float32, busy time, the loop at the system's own budget, memory"""
    return _embedding(options, "float32")


def _bfloat16(options: argparse.Namespace) -> Iterator[str]:
    """the same in bfloat16"""
    return _embedding(options, "bfloat16")


def _int8(options: argparse.Namespace) -> Iterator[str]:
    """int8 weights: texts a second and memory"""
    through = minilm.measure_system(inputs=minilm.texts(options.texts), dtype="int8", device=options.device)
    yield f"system {through.measured.rate:.0f} texts/s in {through.form}, device busy {through.busy:.2f}"
    yield from map(str, _memory(through))


def _auto(options: argparse.Namespace) -> Iterator[str]:
    """what auto picks, compiling included"""
    inputs = minilm.texts(options.texts)
    through = minilm.measure_system(inputs=inputs, dtype="auto", compiled="auto", device=options.device)
    yield f"system {through.measured.rate:.0f} texts/s in {through.form}, device busy {through.busy:.2f}"


def _embedding(options: argparse.Namespace, dtype: str) -> Iterator[str]:
    inputs, folder = minilm.texts(options.texts), minilm.model_folder()
    ratios = []
    for number in range(options.rounds):
        through = minilm.measure_system(inputs=inputs, dtype=dtype, compiled=options.compile, device=options.device)
        loops = measure_loops(
            inputs=inputs, folder=folder, dtype=dtype, device=options.device, more_budgets=[through.budget]
        )
        rate = through.measured.rate
        ratios.append(rate / loops.loop)
        cosine = float((through.embeddings * loops.embeddings).sum(axis=1).min())
        yield (
            f"round {number + 1}: system {rate:.0f} texts/s in {through.form}, device busy {through.busy:.2f}; "
            f"best loop {loops.loop:.0f} at {loops.budget} tokens, in passes {loops.busy:.2f}; at the system's budget "
            f"of {through.budget} tokens {loops.rates[through.budget]:.0f}; encode {loops.encode:.0f} at "
            f"{loops.encode_batch} texts; least cosine with its embeddings {cosine:.5f}"
        )
        yield str(Wanted(what=f"over encode in {dtype}", measured=rate / loops.encode, at_least=1.3))
        yield str(Wanted(what="padding waste", measured=through.waste, at_most=0.03))
        yield from map(str, _memory(through))
    yield str(Wanted(what=f"R in {dtype}, median", measured=statistics.median(ratios), at_least=LEAST[dtype]))


def _memory(through: minilm.Embedded) -> Iterator[Wanted]:
    """What the device holds beside what the consumer expected; nothing of a CPU, whose memory is not counted."""
    if through.memory is not None:
        off = abs(through.memory.used / through.memory.predicted - 1.0)
        yield Wanted(what="memory beside its prediction", measured=off, at_most=0.1)


def _mixed(options: argparse.Namespace) -> Iterator[str]:
    """two models on one device under mixed load, against one after the other"""
    return map(str, engine.mixed(inputs=minilm.texts(options.texts), device=options.device))


def _drain(_: argparse.Namespace) -> Iterator[str]:
    """SIGTERM to exit with batches in flight, and what is computed again"""
    return map(str, engine.drain())


def _start(options: argparse.Namespace) -> Iterator[str]:
    """process start to first result, against the library loading the model by itself"""
    return map(str, engine.start(rounds=max(3, options.rounds), device=options.device))


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "float32": _float32,
    "bfloat16": _bfloat16,
    "int8": _int8,
    "auto": _auto,
    "mixed": _mixed,
    "drain": _drain,
    "start": _start,
}

if __name__ == "__main__":
    sys.exit(main())
