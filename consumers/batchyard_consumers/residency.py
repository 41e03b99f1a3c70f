"""Which models are in memory, where they do not all fit. Pure: no clock, no device.

A model with work moves in while there is room; where there is none, those leave first that have no work, the longest
unused before the others. One that has work itself leaves only for work that is worth the loading, and for work that
has waited too long. Who has just moved in stays a while, so that two models do not take turns in doing nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIN_STAY_SECONDS = 5.0
STAND_BY_SECONDS = 30.0
"""Unused for so long, a model makes room for one that stands by."""
WORTH = 3.0
"""Times the loading: so much device time must wait for a model before another one with work leaves for it."""
PATIENCE_SECONDS = 30.0
"""Work that has waited this long gets its model in any case."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One version, as the plan sees it."""

    name: str
    size: int
    """Bytes that it takes on the device; as measured, else as declared or guessed."""
    is_resident: bool = False
    is_pinned: bool = False
    """Never leaves."""
    resident_seconds: float = math.inf
    """Since it was loaded."""
    unused_seconds: float = 0.0
    """Since it last had work."""
    work_seconds: float = 0.0
    """Device time of its jobs that are queued, held or running; infinity where its speed is not known."""
    waiting_seconds: float = 0.0
    """For how long it has had work and not been resident."""
    load_seconds: float = 0.0
    stands_by: bool = False
    """Wanted in memory, warm, before it has work; where others need the room, they have it meanwhile."""

    @property
    def may_leave(self) -> bool:
        return self.is_resident and not self.is_pinned and self.resident_seconds >= MIN_STAY_SECONDS


@dataclass(frozen=True, kw_only=True)
class Move:
    """What to do next: `evict`, in this order, then load `load`."""

    load: str
    evict: Sequence[str] = ()


def next_move(standings: Sequence[Standing], *, room: float) -> Move | None:
    """The next model to bring into `room` bytes and who leaves for it; None where all may stay as it is."""
    free = room - sum(one.size for one in standings if one.is_resident)
    wanted = [one for one in standings if not one.is_resident and one.work_seconds > 0 and one.size <= room]
    # Pinned first: they are meant to be there. Then who waits longest.
    for one in sorted(wanted, key=lambda each: (not each.is_pinned, -each.waiting_seconds, each.name)):
        leaving = _who_leaves(standings, for_=one, free=free)
        if leaving is not None:
            return Move(load=one.name, evict=[each.name for each in leaving])
    return None if wanted else _standby(standings, room=room, free=free)


def _standby(standings: Sequence[Standing], *, room: float, free: float) -> Move | None:
    """While nobody waits: bring back one that stands by, in place of unused ones that do not."""
    unused = [
        one
        for one in standings
        if one.may_leave and not (one.stands_by or one.work_seconds) and one.unused_seconds >= STAND_BY_SECONDS
    ]
    for one in standings:
        if one.stands_by and not one.is_resident and one.size <= room:
            leaving = _as_few_as_it_takes(unused, for_=one, free=free)
            if leaving is not None:
                return Move(load=one.name, evict=[each.name for each in leaving])
    return None


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A version's weights in the machine's memory, from where they return sooner than they load."""

    name: str
    size: int
    unused_seconds: float


def dropped_copies(copies: Sequence[Copy], *, size: int, room: float) -> list[str] | None:
    """Which copies give way, the longest unused first, to one more of `size`, so that all together take no more than
    `room` bytes; None where it does not fit even alone."""
    held, dropped = sum(one.size for one in copies), []
    for one in sorted(copies, key=lambda each: (-each.unused_seconds, each.name)):
        if held + size <= room:
            break
        dropped.append(one.name)
        held -= one.size
    return dropped if held + size <= room else None


def preloaded(standings: Sequence[Standing], *, room: float) -> list[str]:
    """What is loaded at the start, before any work is known: pinned models, then the others as listed, while they
    fit."""
    fitting: list[str] = []
    for one in sorted(standings, key=lambda each: not each.is_pinned):
        if one.size <= room:
            fitting.append(one.name)
            room -= one.size
    return fitting


def _who_leaves(standings: Sequence[Standing], *, for_: Standing, free: float) -> list[Standing] | None:
    """Those whose leaving makes room, as few as it takes; None where that is not worth it, or not enough."""
    is_worth_it = (
        for_.is_pinned or for_.waiting_seconds >= PATIENCE_SECONDS or for_.work_seconds >= WORTH * for_.load_seconds
    )
    candidates = [
        one for one in standings if one.may_leave and (one.work_seconds == 0 or (is_worth_it and one is not for_))
    ]
    return _as_few_as_it_takes(candidates, for_=for_, free=free)


def _as_few_as_it_takes(candidates: Sequence[Standing], *, for_: Standing, free: float) -> list[Standing] | None:
    """Those without work first, the longest unused before the others; None where all of them are not enough."""
    leaving: list[Standing] = []
    for one in sorted(
        candidates, key=lambda one: (one.work_seconds > 0, -one.unused_seconds, one.work_seconds, one.name)
    ):
        if free >= for_.size:
            break
        leaving.append(one)
        free += one.size
    return leaving if free >= for_.size else None
