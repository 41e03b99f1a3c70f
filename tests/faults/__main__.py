"""`python -m tests.faults`: runs, each in a process of its own and two at a time, and what they found."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
import msgspec

from tests.faults.members import REPOSITORY
from tests.faults.mutants import MUTANTS
from tests.faults.nemesis import faults_of
from tests.faults.recovery import percentile
from tests.faults.report import Findings, recovery_table, totals
from tests.faults.running import Plan
from tests.faults.yard import COMBINATIONS, Combination

AT_A_TIME = 2
DEFAULT_LEASE_SECONDS = 30.0
JOBS = 5_200
"""Of each combination, so that all together have 20,000."""
MUTANT_JOBS = 300
PART_SECONDS = 3600.0
"""For one run at the most."""
LONG = Combination("postgres", "redis")
LONG_PARTS, LONG_JOBS, LONG_FAULTS = 40, 25_000, 50
LONG_RECOVERY_MS = 45_000
"""For 99 of 100 faults."""
LONG_LEFT_OVER = REPOSITORY / "build" / "faults-long"


class Done(NamedTuple):
    name: str
    plan: Plan
    found: Findings | None
    """None: the run itself did not get to its end."""
    said: str
    """By the run, where it did not."""


@click.command()
@click.option("--seed", type=int, help="Of schedule and load; default: another one each time. It is printed.")
@click.option("--only", multiple=True, type=click.Choice(list(map(str, COMBINATIONS))), help="Of the combinations.")
@click.option("--mutant", "mutants", multiple=True, type=click.Choice(list(MUTANTS)), help="Only these mutants.")
@click.option("--jobs", default=JOBS, help="Of each combination.")
@click.option("--faults", help="How many of each combination, or their names with commas; default: each once.")
@click.option("--long", "is_long", is_flag=True, help="A million jobs and 2,000 faults with default leases, resumed.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave histories in this folder.")
def main(
    *,
    seed: int | None,
    only: Sequence[str],
    mutants: Sequence[str],
    jobs: int,
    faults: str | None,
    is_long: bool,
    keep: Path | None,
) -> None:
    """Inject faults into the whole system under load, and judge the history of what became of each job."""
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    began = time.monotonic()
    with TemporaryDirectory(prefix="by-faults-") as temporary:
        folder = keep or Path(temporary)
        if is_long:
            is_good = _judge(_long(LONG_LEFT_OVER), recovery_ms=LONG_RECOVERY_MS)
        else:
            combinations = [] if mutants and not only else [c for c in COMBINATIONS if not only or str(c) in only]
            changed = mutants or ([] if only else list(MUTANTS))
            plans = [*_combinations(combinations, seed, jobs, faults), *_mutants(changed, seed)]
            is_good = _judge(_carried_out(plans, folder))
    click.echo(f"seed {seed}, {time.monotonic() - began:.0f} s")
    sys.exit(0 if is_good else 1)


# --- plans ---


def _combinations(
    combinations: Sequence[Combination], seed: int, jobs: int, faults: str | None
) -> Iterator[tuple[str, Plan]]:
    # Those that take longest first, since they run side by side.
    for combination in reversed(combinations):
        if faults is None:
            chosen: int | tuple[str, ...] = len(faults_of(combination))
        else:
            chosen = int(faults) if faults.isdigit() else tuple(faults.split(","))
        yield str(combination), Plan(combination=combination, seed=seed, jobs=jobs, faults=chosen)


def _mutants(names: Sequence[str], seed: int) -> Iterator[tuple[str, Plan]]:
    for name in names:
        mutant = MUTANTS[name]
        combination = Combination("sqlite", mutant.broker)
        yield (
            name,
            Plan(
                combination=combination,
                seed=seed,
                jobs=MUTANT_JOBS,
                faults=mutant.faults,
                apis=1,
                consumers=1,
                mutant=name,
            ),
        )


def _long(folder: Path) -> Iterator[Done]:
    """Part after part, those that an earlier call has done as they were found."""
    for number in range(1, LONG_PARTS + 1):
        name = f"part-{number:02}"
        plan = Plan(
            combination=LONG,
            seed=number,
            jobs=LONG_JOBS,
            faults=LONG_FAULTS,
            lease_seconds=DEFAULT_LEASE_SECONDS,
            recovery_seconds=90.0,
        )
        told = folder / name / "findings.json"
        if told.exists():
            yield Done(name, plan, msgspec.json.decode(told.read_bytes(), type=Findings), "")
            continue
        done = _carry_out(name, plan, folder)
        if done.found is not None and not done.found.rules:
            # Nobody will ask for it, and forty would fill a disk.
            (folder / name / "history.jsonl").unlink()
        yield done


# --- runs ---


def _carried_out(plans: Sequence[tuple[str, Plan]], folder: Path) -> Iterator[Done]:
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield from pool.map(lambda named: _carry_out(named[0], named[1], folder), plans)


def _carry_out(name: str, plan: Plan, folder: Path) -> Done:
    place = folder / name.replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.json").write_bytes(msgspec.json.encode(plan))
    told = place / "findings.json"
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.part", str(place)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = running.communicate(timeout=PART_SECONDS)
    except subprocess.TimeoutExpired:
        # It ends what it has started.
        running.terminate()
        said, _ = running.communicate()
    found = msgspec.json.decode(told.read_bytes(), type=Findings) if running.returncode == 0 else None
    return Done(name, plan, found, said)


# --- judgement ---


def _judge(every: Iterable[Done], *, recovery_ms: int | None = None) -> bool:
    """Show each run as it ends, then all together; whether all is well, and 99 of 100 recoveries as quick as that."""
    found: list[Findings] = []
    verdicts: list[bool] = []
    for done in every:
        verdict = _caught(done) if done.plan.mutant else _clean(done)
        verdicts.append(verdict)
        if done.found is not None and not done.plan.mutant:
            found.append(done.found)
    if found:
        click.echo(recovery_table(found))
        click.echo(f"all together: {totals(found)}")
    if recovery_ms is not None:
        p99_ms = percentile([ms for each in found for _, ms in each.waits], 0.99)
        click.echo(f"recovery p99 {p99_ms} ms, at most {recovery_ms} ms allowed")
        verdicts.append(p99_ms <= recovery_ms)
    return all(verdicts)


def _clean(done: Done) -> bool:
    plan, found = done.plan, done.found
    if found is None:
        click.echo(f"{done.name}: did not end\n{done.said}\nAgain: {_again(plan)}")
        return False
    factor = DEFAULT_LEASE_SECONDS / plan.lease_seconds
    click.echo(f"{done.name}, {found.seconds:.0f} s, leases shortened by a factor of {factor:g}: {totals([found])}")
    click.echo(f"  seed {plan.seed}, history {found.digest}")
    if found.rules:
        click.echo(f"{found.accusation}\nAgain: {_again(plan)}")
    return not found.rules


def _caught(done: Done) -> bool:
    """A mutant is caught by a rule that it is meant for."""
    found = done.found
    by = sorted(MUTANTS[done.name].caught_by & set(found.rules)) if found is not None else []
    if by and found is not None:
        click.echo(f"mutant, caught in {found.seconds:.0f} s: {done.name} ({', '.join(by)})")
        return True
    what = done.said if found is None else f"only these rules found anything: {found.rules}"
    click.echo(f"mutant, NOT CAUGHT: {done.name}\n{what}\nAgain: {_again(done.plan)}")
    return False


def _again(plan: Plan) -> str:
    """The command that repeats a run."""
    chosen = f'--mutant "{plan.mutant}"' if plan.mutant else f"--only {plan.combination} --jobs {plan.jobs}"
    if not plan.mutant:
        chosen += f" --faults {plan.faults if isinstance(plan.faults, int) else ','.join(plan.faults)}"
    return f"python -m tests.faults {chosen} --seed {plan.seed}"


if __name__ == "__main__":
    main()
