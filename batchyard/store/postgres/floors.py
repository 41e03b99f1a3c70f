"""From where on a line is looked at. Pure.

While somebody keeps a transaction open, Postgres cleans nothing up: whoever looks for the first queued job of a line
goes through every job that has left it since, a second for some hundred thousand of them. A look that took long is
therefore remembered by where it found the first job, and the looks that follow begin there. What becomes queued before
that place meanwhile (whoever makes it so publishes a ticket) is found by the next look from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

LONG_SECONDS = 0.05
"""A look that took less is repeated as it was."""
REST = 20.0
"""Times as long as a look from the beginning took, none follows it: one twentieth of the time goes into them."""

Line = tuple[int, int, int]
"""Queue, tenant, priority."""


class _Floor(NamedTuple):
    id: int
    until: float


class Floors:
    """Of one process, for all its threads: every step is one operation on a dictionary. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._floors: dict[Line, _Floor] = {}

    def of(self, line: Line) -> int:
        """The id after which to look; 0: from the beginning."""
        floor = self._floors.get(line)
        if floor is None or self._clock() >= floor.until:
            return 0
        return floor.id

    def known(self) -> dict[Line, int]:
        """Of all lines that are not to be looked at from the beginning."""
        now = self._clock()
        return {line: floor.id for line, floor in list(self._floors.items()) if now < floor.until}

    def learn(self, line: Line, *, after: int, none_to: int, seconds: float) -> None:
        """A look that took so long, after the id that `of` had told, found nothing up to and with the id `none_to`."""
        if after:
            floor = self._floors.get(line)
            if floor is not None and after <= floor.id < none_to:
                self._floors[line] = floor._replace(id=none_to)
        elif seconds >= LONG_SECONDS:
            self._floors[line] = _Floor(none_to, self._clock() + REST * seconds)
        else:
            self._floors.pop(line, None)
