"""Jobs that compute the same: one computes, the others follow it, and are served with what it came to. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from batchyard.jobs import State

PATIENCE = 3
"""After so many failures in a row jobs do not go one by one any more: what fails them all would take as many turns as
there are jobs."""


class Computed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The result of a job, for others that compute the same."""

    job_id: int
    tenant_id: int
    format: int
    """How `body` is encoded, see `batchyard.results`."""
    cost: int
    body: bytes


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of held jobs, by id. Those named nowhere compute by themselves, and nobody waits for them."""

    computing: frozenset[int] = frozenset()
    """Others may wait for these."""
    following: frozenset[int] = frozenset()
    """Not held any more: they wait."""
    served: Mapping[int, Computed] = {}


class Standing(NamedTuple):
    """The job that is known to compute something, as it stands."""

    job_id: int
    state: State
    finished_at_ms: int | None
    lease_until_ms: int | None
    """Of the consumer that holds it, or held it last."""
    failures: int = 0
    """Of those that went before it, in a row."""


class Turn(NamedTuple):
    """What becomes of jobs that compute the same."""

    computing: Sequence[int] = ()
    following: Sequence[int] = ()
    until_ms: int = 0
    """When those that follow look again at the latest: with the lease that the computation stands under."""
    served_by: int | None = None
    """The job whose result serves all of them."""
    failures: int = 0
    """In a row, before the first that computes."""


def take_turns(
    mine: Sequence[int], standing: Standing | None, *, now_ms: int, keep_ms: int, lease_until_ms: int
) -> Turn:
    """Decide about jobs of one consumer that compute the same, of which the first is to go first; its lease lives until
    `lease_until_ms`. `standing` is the job that is known to compute this, if any; it may be one of them.

    A failure is not shared: the next one takes over, and after `PATIENCE` of them everybody computes for himself.
    """
    failures = 0
    if standing is not None and standing.job_id not in mine:
        if is_fresh(standing, now_ms=now_ms, keep_ms=keep_ms):
            return Turn(served_by=standing.job_id)
        if standing.state is State.RUNNING and (standing.lease_until_ms or 0) > now_ms:
            return Turn(following=mine, until_ms=standing.lease_until_ms or 0)
        if standing.state is not State.SUCCEEDED:
            failures = standing.failures + (standing.state in {State.FAILED, State.WAITING})
        if failures >= PATIENCE:
            return Turn(computing=mine, failures=failures)
    first = standing.job_id if standing is not None and standing.job_id in mine else mine[0]
    others = [job_id for job_id in mine if job_id != first]
    return Turn(computing=[first], following=others, until_ms=lease_until_ms, failures=failures)


def is_fresh(standing: Standing, *, now_ms: int, keep_ms: int) -> bool:
    """Whether its result may still serve others."""
    finished = standing.finished_at_ms
    return standing.state is State.SUCCEEDED and finished is not None and finished + keep_ms > now_ms
