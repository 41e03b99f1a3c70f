"""Looks at a line that take long, as they do while somebody keeps a transaction open."""

import pytest

from batchyard.store.postgres import PostgresStore
from batchyard.store.postgres.floors import Floors
from tests.services.store.yard import TENANT, Yard

pytestmark = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def heads(yard: Yard) -> list[int]:
    lines = yard.store.head(yard.queue, after={}, jobs=10, urgent_before_ms=0)
    return [candidate.id for line in lines for candidate in line.candidates]


def stragglers(yard: Yard, below: int) -> list[int]:
    return yard.store.stragglers(yard.queue, below={(TENANT, 5): below}, limit=10)


def test_what_was_queued_before_a_long_look_s_end_is_seen_by_the_next_one_from_the_beginning(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(yard.store, PostgresStore)
    held, ids = yard.submit(2), yard.submit(3)
    jobs = yard.claim(held)
    # Every look counts as long, and the time stands still until the end.
    now = [0.0]
    monkeypatch.setattr(yard.store, "_floors", Floors(lambda: now[0]))
    monkeypatch.setattr("batchyard.store.postgres.floors.LONG_SECONDS", 0.0)
    assert heads(yard) == ids
    yard.store.release(jobs, owner=yard.owner)
    assert heads(yard) == ids
    assert stragglers(yard, ids[0]) == []
    assert stragglers(yard, ids[2]) == ids[:2]
    yard.claim(ids[:2])
    assert heads(yard) == ids[2:]
    assert yard.store.position(ids[2]) == 0
    now[0] += 3600
    assert yard.store.position(ids[2]) == len(held)
    assert stragglers(yard, ids[2]) == held
    assert heads(yard) == [*held, ids[2]]
