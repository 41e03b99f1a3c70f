"""`python -m tests.faults`: runs, each in a process of its own and some at a time, and what they found."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
LONG_AT_A_TIME = 4
"""Most of a part's time is spent waiting: for leases that run out, and for what stays away."""
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
@click.option("--so-far", is_flag=True, help="Of the long run: only show what its parts have found.")
@click.option("--at-a-time", type=click.IntRange(1), help="Runs side by side; default 2, of the long run's parts 4.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave histories in this folder.")
def main(
    *,
    seed: int | None,
    only: Sequence[str],
    mutants: Sequence[str],
    jobs: int,
    faults: str | None,
    is_long: bool,
    so_far: bool,
    at_a_time: int | None,
    keep: Path | None,
) -> None:
    """Inject faults into the whole system under load, and judge the history of what became of each job."""
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    began = time.monotonic()
    with TemporaryDirectory(prefix="by-faults-") as temporary:
        folder = keep or Path(temporary)
        if is_long:
            parts = _long(keep or LONG_LEFT_OVER, so_far=so_far, at_a_time=at_a_time or LONG_AT_A_TIME)
            is_good = _judge(parts, recovery_ms=LONG_RECOVERY_MS)
        else:
            combinations = [] if mutants and not only else [c for c in COMBINATIONS if not only or str(c) in only]
            changed = mutants or ([] if only else list(MUTANTS))
            plans = [*_combinations(combinations, seed, jobs, faults), *_mutants(changed, seed)]
            is_good = _judge(_carried_out(plans, folder, at_a_time=at_a_time or AT_A_TIME))
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


def _long(folder: Path, *, so_far: bool, at_a_time: int) -> Iterator[Done]:
    """Part after part, those that an earlier call has done as they were found."""
    plans = [
        (
            f"part-{number:02}",
            Plan(
                combination=LONG,
                seed=number,
                jobs=LONG_JOBS,
                faults=LONG_FAULTS,
                lease_seconds=DEFAULT_LEASE_SECONDS,
                recovery_seconds=90.0,
                rate=80.0,
                clients=3,
                is_patient=True,
            ),
        )
        for number in range(1, LONG_PARTS + 1)
    ]
    done = [(name, plan) for name, plan in plans if (folder / name / "findings.json").exists()]
    for name, plan in done:
        told = (folder / name / "findings.json").read_bytes()
        yield Done(name, plan, msgspec.json.decode(told, type=Findings), "")
    left = [] if so_far else [named for named in plans if named not in done]
    for each in _carried_out(left, folder, at_a_time=at_a_time):
        if each.found is not None and not each.found.rules:
            # Nobody will ask for it, and forty would fill a disk.
            (folder / each.name / "history.jsonl").unlink()
        yield each


# --- runs ---


def _carried_out(plans: Sequence[tuple[str, Plan]], folder: Path, *, at_a_time: int) -> Iterator[Done]:
    with ThreadPoolExecutor(at_a_time) as pool:
        running = [pool.submit(_carry_out, name, plan, folder) for name, plan in plans]
        try:
            yield from (each.result() for each in as_completed(running))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _carry_out(name: str, plan: Plan, folder: Path) -> Done:
    place = folder / name.replace(" ", "-")
    place.mkdir(parents=True, exist_ok=True)
    (place / "plan.json").write_bytes(msgspec.json.encode(plan))
    told = place / "findings.json"
    # It ends with whoever holds the other end of its standard input.
    lives_while_open, held = os.pipe()
    try:
        running = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.part", str(place)],
            cwd=REPOSITORY,
            stdin=lives_while_open,
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
    finally:
        os.close(lives_while_open)
        os.close(held)
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
        p99_ms = percentile([ms for each in found for _, ms in (*each.waits, *each.undisturbed_waits)], 0.99)
        click.echo(f"{len(found)} runs, recovery p99 {p99_ms} ms, at most {recovery_ms} ms allowed")
        verdicts.append(bool(found) and p99_ms <= recovery_ms)
    return all(verdicts)


def _clean(done: Done) -> bool:
    plan, found = done.plan, done.found
    if found is None:
        click.echo(f"{done.name}: did not end\n{done.said}\nAgain: {_again(done)}")
        return False
    factor = DEFAULT_LEASE_SECONDS / plan.lease_seconds
    click.echo(f"{done.name}, {found.seconds:.0f} s, leases shortened by a factor of {factor:g}: {totals([found])}")
    click.echo(f"  seed {plan.seed}, history {found.digest}")
    if found.rules:
        click.echo(f"{found.accusation}\nAgain: {_again(done)}")
    return not found.rules


def _caught(done: Done) -> bool:
    """A mutant is caught by a rule that it is meant for."""
    found = done.found
    by = sorted(MUTANTS[done.name].caught_by & set(found.rules)) if found is not None else []
    if by and found is not None:
        click.echo(f"mutant, caught in {found.seconds:.0f} s: {done.name} ({', '.join(by)})")
        return True
    what = done.said if found is None else f"only these rules found anything: {found.rules}"
    click.echo(f"mutant, NOT CAUGHT: {done.name}\n{what}\nAgain: {_again(done)}")
    return False


def _again(done: Done) -> str:
    """The command that repeats a run."""
    plan = done.plan
    if plan.mutant:
        return f'python -m tests.faults --mutant "{plan.mutant}" --seed {plan.seed}'
    if plan.lease_seconds == DEFAULT_LEASE_SECONDS:
        return f"python -m tests.faults.part {LONG_LEFT_OVER.relative_to(REPOSITORY) / done.name}"
    faults = plan.faults if isinstance(plan.faults, int) else ",".join(plan.faults)
    chosen = f"--only {plan.combination} --jobs {plan.jobs} --faults {faults}"
    return f"python -m tests.faults {chosen} --seed {plan.seed}"


if __name__ == "__main__":
    main()
