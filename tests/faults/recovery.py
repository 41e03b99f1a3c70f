"""How long each fault kept work from going on. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from batchyard.jobs import State
from tests.faults.history import Fault, History, Transition

NEVER = 1 << 50


class Recovery(NamedTuple):
    """Work went on after a fault. Milliseconds; None: never."""

    name: str
    ms: int | None
    """From the fault's end, for what its victims held from its beginning."""
    undisturbed_ms: int | None
    """Where other faults struck meanwhile, from the end of the last of them."""

    @property
    def was_overtaken(self) -> bool:
        return self.ms != self.undisturbed_ms


class _Held(NamedTuple):
    """A consumer held a job from `since_ms` on; `until_ms` NEVER: to the end of the history."""

    since_ms: int
    until_ms: int


def recoveries(history: History) -> list[Recovery]:
    """For each fault: when a submission begun after its end was accepted, and a job claimed, and no victim held a job
    any more that it held at its beginning, whichever came last."""
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
        serves_ms = first_answer[place] if place < len(accepted) else NEVER
        works_ms = claims[claim] if claim < len(claims) else NEVER
        freed_ms = _freed(fault, held)
        found.append(_recovery(fault, history.faults, goes_on_ms=max(serves_ms, works_ms), freed_ms=freed_ms))
    return found


def _recovery(fault: Fault, faults: Sequence[Fault], *, goes_on_ms: int, freed_ms: int) -> Recovery:
    at_ms = max(goes_on_ms, freed_ms)
    if at_ms >= NEVER:
        return Recovery(fault.name, None, None)
    own_ms = max(goes_on_ms - fault.healed_ms, freed_ms - fault.began_ms)
    later = [other.healed_ms for other in faults if fault.began_ms < other.began_ms < at_ms]
    return Recovery(fault.name, own_ms, min(own_ms, max(0, at_ms - max(later))) if later else own_ms)


def _freed(fault: Fault, held: dict[int, list[_Held]]) -> int:
    """When no victim held a job any more that it held at the beginning; that beginning, where none did."""
    until = [
        one.until_ms
        for owner in fault.victims
        for one in held.get(owner, ())
        if one.since_ms <= fault.began_ms < one.until_ms
    ]
    return max(until, default=fault.began_ms)


def _holdings(transitions: Sequence[Transition]) -> dict[int, list[_Held]]:
    holdings: dict[int, list[_Held]] = defaultdict(list)
    since: dict[int, tuple[int, int]] = {}
    for change in sorted(transitions, key=lambda change: change.seq):
        if change.came is State.RUNNING and change.job in since:
            owner, began = since.pop(change.job)
            holdings[owner].append(_Held(began, change.at_ms))
        if change.went is State.RUNNING and change.owner is not None:
            since[change.job] = (change.owner, change.at_ms)
    for owner, began in since.values():
        holdings[owner].append(_Held(began, NEVER))
    return holdings


def percentile(values: Sequence[int], share: float) -> int:
    """The least value that at least this share of all does not exceed; 0 of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0
