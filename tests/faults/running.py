"""One run: the system comes up, clients and nemesis do their worst, all is healed, and the history is complete."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from batchyard.jobs import format_id
from tests.faults.calling import Caller, lookups, note_poll
from tests.faults.history import Call, Calm, History, Setting
from tests.faults.load import MODEL, Fed, Load
from tests.faults.nemesis import Nemesis, faults_of, schedule
from tests.faults.yard import Combination, Yard, await_ready, yard

CALM_JOBS = 400
STREAM_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run is to do."""

    combination: Combination
    seed: int
    jobs: int
    faults: int | tuple[str, ...]
    """How many of those that the combination knows, or which."""
    rate: float = 60.0
    """Jobs submitted per second, beside the rushes."""
    clients: int = 6
    apis: int = 2
    consumers: int = 2
    lease_seconds: float = 3.0
    recovery_seconds: float = 30.0
    is_patient: bool = False
    """Most faults are recovered from before the next one strikes, whatever time that takes."""
    mutant: str = ""

    @property
    def stuck_seconds(self) -> float:
        """Without a job ending for this long, whatever is unfinished stays so: a lease that runs out, the leader's
        patience with silent consumers, which is another, and its rounds."""
        return 3 * self.lease_seconds + 10

    @property
    def strikes(self) -> Iterator[tuple[float, str]]:
        """The faults in order, with the pause in seconds before each."""
        rng = random.Random(self.seed)
        if isinstance(self.faults, int):
            return schedule(faults_of(self.combination), count=self.faults, rng=rng)
        return iter([(1.0, name) for name in self.faults])


def run(plan: Plan) -> History:
    """Carry a plan out and return everything that happened."""
    setting = Setting(
        seed=plan.seed, lease_ms=round(plan.lease_seconds * 1000), recovery_ms=round(plan.recovery_seconds * 1000)
    )
    history = History(setting=setting)
    with (
        _folder() as folder,
        yard(
            folder, plan.combination, history=history, apis=plan.apis, consumers=plan.consumers, mutant=plan.mutant
        ) as made,
    ):
        keys = made.make_keys()
        load = Load(made.urls, keys=keys, history=history, seed=plan.seed, clients=plan.clients, rate=plan.rate)
        rng = random.Random(plan.seed)
        nemesis = Nemesis(made, load, rng, mutant=plan.mutant, is_patient=plan.is_patient)
        with load.running():
            for pause, name in plan.strikes:
                time.sleep(pause)
                load.check()
                nemesis.strike(name)
            _outlast(load, made, jobs=plan.jobs)
        is_drained = drain(made, stuck_seconds=plan.stuck_seconds)
        if not plan.mutant:
            _calm(made, keys, stuck_seconds=plan.stuck_seconds)
        audit(made, keys, load, streams=is_drained)
        made.record()
    return history


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="by-faults-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _outlast(load: Load, made: Yard, *, jobs: int) -> None:
    """Let clients go on until everything serves again, a submission has been accepted since, and all jobs are made."""
    await_ready(made)
    healed = load.jobs
    while load.jobs < jobs or load.jobs < healed + 20:
        load.check()
        time.sleep(0.1)


def drain(made: Yard, *, stuck_seconds: float) -> bool:
    """Wait until every job has ended, or none has for long; whether all have."""
    left, since = made.unfinished(), time.monotonic()
    while left and time.monotonic() < since + stuck_seconds:
        time.sleep(0.1)
        now_left = made.unfinished()
        if now_left != left:
            left, since = now_left, time.monotonic()
    return left == 0


def _calm(made: Yard, keys: Mapping[str, str], *, stuck_seconds: float) -> None:
    """Load without faults: how often is a job ticketed?"""
    [(tenant, key), *_] = keys.items()
    before = made.ticketed(), made.claimed()
    caller = Caller(made.urls, tenant=tenant, key=key, rng=random.Random(0))
    for start in range(0, CALM_JOBS, 40):
        tokens = [f"echo-calm-{number}" for number in range(start, start + 40)]
        body = {"inputs": [{"token": token} for token in tokens]}
        answer = caller.call("POST", f"/v1/models/{MODEL}/jobs", body, key=tokens[0])
        ids = tuple(int(job, 16) for job in answer.body["ids"])
        made.history.add([answer.call("submit", tenant=tenant, key=tokens[0], tokens=tuple(tokens), ids=ids)])
    caller.close()
    drain(made, stuck_seconds=stuck_seconds)
    after = made.ticketed(), made.claimed()
    made.history.add([Calm(ticketed=after[0] - before[0], claimed=after[1] - before[1])])


def audit(made: Yard, keys: Mapping[str, str], load: Load, *, streams: bool) -> None:
    """Everybody reads all of their jobs once more and, where they have ended, the results of their bulks."""
    for tenant, key in keys.items():
        caller = Caller(made.urls, tenant=tenant, key=key, rng=random.Random(0))
        mine = sorted({job.id for job in load.known if job.tenant == tenant})
        for ids in lookups(mine):
            answer = caller.call("POST", "/v1/jobs/lookup", {"ids": list(map(format_id, ids))})
            note_poll(answer, ids, tenant=tenant, history=made.history)
        if streams:
            made.history.add(_stream(caller, bulk) for bulk in load.bulks if bulk.tenant == tenant)
        caller.close()


def _stream(caller: Caller, bulk: Fed) -> Call:
    """All results of a bulk, read once it is finished."""
    give_up = time.monotonic() + STREAM_SECONDS
    while True:
        answer = caller.call("GET", f"/v1/bulks/{bulk.id}/results")
        lines = list(map(json.loads, answer.body.splitlines()))
        if any(line.get("finished") for line in lines) or time.monotonic() > give_up:
            break
        time.sleep(0.1)
    ids = tuple(int(line["id"], 16) for line in lines if "id" in line)
    return answer.call("stream", tenant=caller.tenant, tokens=tuple(bulk.tokens), ids=ids)
