"""Microseconds a job of what a result cache adds to the path from claim to finish, in batches of 1,024.

    python -m tests.benchmarks.cache sqlite:////tmp/empty.db
    python -m tests.benchmarks.cache postgresql+psycopg://…/empty

`share` is the one call of the store that a consumer adds for a model with a cache: all of a batch computed (new keys),
all of it served, or all of it waiting for another consumer's jobs. Wall clock on one thread, the lower quartile.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from hashlib import sha256

from msgspec.structs import replace

from batchyard.jobs import ClaimedJob, Outcome, State
from batchyard.sharing import Division
from tests.benchmarks.store import CLAIM, Fixture, Meter, low, prepare

KEEP_MS = 3_600_000


def share(fixture: Fixture, jobs: Sequence[ClaimedJob], *, round_: int) -> Division:
    keys = [sha256(b"%d %d" % (round_, place)).digest() for place in range(len(jobs))]
    return fixture.store.share(jobs, keys, owner=fixture.owner, keep_ms=KEEP_MS)


CALLS = (
    "claim",
    "finish, no cache",
    "share: computed",
    "share: wait",
    "finish, followed",
    "share: served",
    "finish, served",
)


def measure(fixture: Fixture, *, rounds: int) -> dict[str, Meter]:
    meters = {name: Meter() for name in CALLS}
    for round_ in range(rounds):
        plain, first, waiting, last = (_claimed(fixture, meters["claim"]) for _ in range(4))
        meters["finish, no cache"].run(partial(fixture.finish, plain), per=CLAIM)
        meters["share: computed"].run(partial(share, fixture, first, round_=round_), per=CLAIM)
        meters["share: wait"].run(partial(share, fixture, waiting, round_=round_), per=CLAIM)
        followed = [replace(job, is_followed=True) for job in first]
        meters["finish, followed"].run(partial(fixture.finish, followed), per=CLAIM)
        division = meters["share: served"].run(partial(share, fixture, last, round_=round_), per=CLAIM)
        outcomes = [
            Outcome(job, State.SUCCEEDED, result.body, cost=result.cost, computed_by=result.job_id)
            for job in last
            for result in [division.served[job.id]]
        ]
        finish = partial(fixture.store.finish, outcomes, owner=fixture.owner)
        assert len(meters["finish, served"].run(finish, per=CLAIM)) == CLAIM
        fixture.store.fold(limit=1_000_000)
    return meters


def _claimed(fixture: Fixture, meter: Meter) -> list[ClaimedJob]:
    ids = fixture.submit(CLAIM)
    return meter.run(partial(fixture.claim, ids), per=CLAIM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    for url in arguments.urls:
        fixture = prepare(url)
        print(fixture.store.durability())
        for name, meter in measure(fixture, rounds=arguments.rounds).items():
            print(f"{name:20} {low(meter.wall):8.2f} us, cpu {low(meter.cpu):8.2f}")


if __name__ == "__main__":
    main()
