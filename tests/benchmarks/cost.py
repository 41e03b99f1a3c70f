"""What this checkout costs against a commit of its past: both run the no-op pipeline in turn, each in processes of its
own code, so that whatever else the machine does touches both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks import bulk, single
from tests.benchmarks.report import Measurement, Row
from tests.checkouts import REPOSITORY, git, unpack


def measure(*, against: str, database: str, rounds: int, jobs: int, seconds: int) -> Iterator[str]:
    """Rounds as A B, B A, A B, …; at the end the medians of the ratios within each."""
    commit = git("rev-parse", "--short", against).decode().strip()
    with TemporaryDirectory(prefix="by-cost-") as name:
        before = Path(name)
        unpack(commit, before)
        rows: dict[str, Callable[[Path], Measurement]] = {
            "bulk": lambda code: bulk.measure(database=database, jobs=jobs, code=code),
            "single": lambda code: single.measure(database=database, seconds=seconds, code=code),
        }
        for row, run in rows.items():
            found: dict[Path, list[Measurement]] = {before: [], REPOSITORY: []}
            for number in range(rounds):
                for code in list(found)[:: -1 if number % 2 else 1]:
                    found[code].append(run(code))
            yield from Row(name=f"{row}, {database}, {commit}", rounds=found[before]).lines()
            yield from Row(name=f"{row}, {database}, this checkout", rounds=found[REPOSITORY]).lines()
            pairs = list(zip(found[REPOSITORY], found[before], strict=True))
            rate = statistics.median(now.rate / then.rate for now, then in pairs)
            cpu = statistics.median(_cpu(now) / _cpu(then) for now, then in pairs)
            yield f"{row}, {database}: {rate:.3f} times the jobs/s, {cpu:.3f} times the CPU a job, of {commit}"


def _cpu(measured: Measurement) -> float:
    """Seconds a job of all but the client, which is the same for both."""
    return sum(spent for role, spent in measured.cpu_seconds.items() if role != "client") / measured.jobs
