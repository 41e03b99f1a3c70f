"""How long each fault kept work from going on. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from batchyard.jobs import State
from tests.faults.history import History, Transition

NEVER = 1 << 50


class Recovery(NamedTuple):
    name: str
    ms: int | None
    """None: never."""


class _Held(NamedTuple):
    """A consumer held a job from `since_ms`; `until_ms` None: to the end of the history."""

    since_ms: int
    until_ms: int | None


def recoveries(history: History) -> list[Recovery]:
    """For each fault: from its end until a submission begun later is accepted, and a job is claimed, and from its
    beginning until no victim holds a job that it held then, whichever is longest."""
    accepted = sorted(
        (call.began_ms, call.ended_ms) for call in history.calls if call.outcome == "ok" and call.did == "submit"
    )
    # The earliest answer to any submission begun at that moment or later.
    first_answer = [ended for _, ended in accepted]
    for place in range(len(accepted) - 2, -1, -1):
        first_answer[place] = min(first_answer[place], first_answer[place + 1])
    claims = sorted(change.at_ms for change in history.transitions if change.went is State.RUNNING)
    held = _holdings(history.transitions)
    found: list[Recovery] = []
    for fault in history.faults:
        place = bisect_left(accepted, (fault.healed_ms, 0))
        claim = bisect_left(claims, fault.healed_ms)
        if place == len(accepted) or claim == len(claims):
            found.append(Recovery(fault.name, None))
            continue
        waits = [first_answer[place] - fault.healed_ms, claims[claim] - fault.healed_ms]
        waits += [
            (NEVER if one.until_ms is None else one.until_ms) - fault.began_ms
            for owner in fault.victims
            for one in held[owner]
            if one.since_ms <= fault.began_ms < (one.until_ms or NEVER)
        ]
        worst = max(waits)
        found.append(Recovery(fault.name, None if worst > NEVER // 2 else worst))
    return found


def _holdings(transitions: list[Transition]) -> dict[int, list[_Held]]:
    holdings: dict[int, list[_Held]] = defaultdict(list)
    since: dict[int, tuple[int, int]] = {}
    for change in sorted(transitions, key=lambda change: change.seq):
        if change.came is State.RUNNING and change.job in since:
            owner, began = since.pop(change.job)
            holdings[owner].append(_Held(began, change.at_ms))
        if change.went is State.RUNNING and change.owner is not None:
            since[change.job] = (change.owner, change.at_ms)
    for owner, began in since.values():
        holdings[owner].append(_Held(began, None))
    return holdings


def percentile(values: Sequence[int], share: float) -> int:
    """The least value that at least this share of all does not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0
