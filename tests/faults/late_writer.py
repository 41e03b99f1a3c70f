"""A consumer that writes what it no longer may: `python -m tests.faults.late_writer FOLDER`.

It submits a few jobs and claims them, gives them back and claims them again; then it hands in results of the first
attempt, results in another consumer's name, the right ones, and others after those. None but the right ones may be
stored, which the checker sees from the rows. Its one line of output is the call that made the jobs, for the history.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from batchyard import results
from batchyard.configuration import load_settings
from batchyard.errors import Unavailable
from batchyard.jobs import Accepted, ClaimedJob, Lane, Outcome, State, Submission
from batchyard.store.base import JobStore
from batchyard.store.open import open_store
from tests.faults.history import Call
from tests.faults.members import now_ms
from tests.faults.model import answer

JOBS = 5
LEASE_MS = 30_000
TELL_SECONDS = 100.0
"""After which it tells where it stands; a little later it is ended."""


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(TELL_SECONDS)
    settings = load_settings(folder / "batchyard.toml")
    store = open_store(settings.database.url, state_dir=settings.state_dir)
    try:
        _write_late(store)
    except Unavailable as away:
        # What it holds goes back when its lease is over, as any consumer's does.
        print(f"gave up: {away.message}", file=sys.stderr)
    finally:
        store.close()


def _write_late(store: JobStore) -> None:
    queue_id = store.models()[0].queue_ids[Lane.FIRM]
    owner, other = (_register(store, queue_id) for _ in range(2))
    tokens = [f"echo-late-{owner:x}-{number}" for number in range(JOBS)]
    ids = _submit(store, queue_id, tokens)
    first = store.claim([(queue_id, ids)], owner=owner)
    store.release(first, owner=owner)
    held = store.claim([(queue_id, ids)], owner=owner)
    store.finish(_outcomes(first, why="an earlier attempt"), owner=owner)
    store.finish(_outcomes(held, why="another consumer"), owner=other)
    store.finish(_outcomes(held), owner=owner)
    store.finish(_outcomes(held, why="after the end"), owner=owner)
    for each in (owner, other):
        store.deregister(each)


def _register(store: JobStore, queue_id: int) -> int:
    return store.register_consumer(
        pool="late",
        host="here",
        pid=os.getpid(),
        device="cpu",
        capacity="on_demand",
        queue_ids=[queue_id],
        lease_ms=LEASE_MS,
    )


def _submit(store: JobStore, queue_id: int, tokens: Sequence[str]) -> Sequence[int]:
    tenant = next(tenant for tenant in store.tenants() if tenant.name != "default")
    inputs = [msgspec.json.encode({"token": token}) for token in tokens]
    began = now_ms()
    [accepted] = store.submit(
        # High, and as if ticketed: nobody else is told of them before they are claimed here.
        [Submission(tenant_id=tenant.id, queue_id=queue_id, inputs=inputs, costs=[1] * len(inputs), ticketed=True)]
    )
    assert isinstance(accepted, Accepted), accepted
    call = Call(
        did="submit",
        tenant=tenant.name,
        began_ms=began,
        ended_ms=now_ms(),
        outcome="ok",
        tokens=tuple(tokens),
        ids=tuple(accepted.ids),
    )
    print(msgspec.json.encode(call).decode(), flush=True)
    return accepted.ids


def _outcomes(held: Sequence[ClaimedJob], *, why: str = "") -> list[Outcome]:
    """Successes, with the right result, or with one that tells why it is wrong."""
    return [
        Outcome(
            job,
            State.SUCCEEDED,
            body=msgspec.json.encode({"late": why} if why else answer(msgspec.json.decode(job.input)["token"])),
            format=results.JSON,
            cost=1,
        )
        for job in held
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
