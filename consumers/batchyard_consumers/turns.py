"""Which version's batch is next on a device that several share, and whether to wait for more of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A version with prepared jobs, as the choice between versions sees it."""

    key: str
    is_firm: bool = True
    """Whether it holds firm work; tolerant work goes after, unless it is overdue."""
    is_overdue: bool = False
    """Whether its oldest job waits longer than the age cap."""


@dataclass
class Turns:
    """Shares the device between versions: each one's device time divided by its share is kept level.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): a version that had nothing to do comes back at the level of those
    that had, and so neither owes nor is owed for the time it was idle.
    """

    _used: dict[str, float] = field(default_factory=dict)
    _level: float = 0.0
    _waiting: frozenset[str] = frozenset()

    def pick(self, contenders: Sequence[Contender], *, among: Callable[[str], bool] = lambda _: True) -> str | None:
        """Whose batch is next, of all that have jobs waiting; None where none of those is `among` the allowed."""
        for contender in contenders:
            if contender.key not in self._waiting:
                self._used[contender.key] = max(self._used.get(contender.key, 0.0), self._level)
        self._waiting = frozenset(contender.key for contender in contenders)
        allowed = [contender for contender in contenders if among(contender.key)]
        if not allowed:
            return None
        chosen = min(allowed, key=lambda s: (not (s.is_firm or s.is_overdue), self._used[s.key]))
        self._level = max(self._level, self._used[chosen.key])
        return chosen.key

    def charge(self, key: str, *, seconds: float, share: float = 1.0) -> None:
        """Note the device time that a version's batch took; of two that always wait, one with twice the share gets
        twice the time."""
        self._used[key] = self._used.get(key, self._level) + seconds / share


def patience_seconds(
    *, waiting_cost: int, budget: int, on_their_way: int, is_firm: bool, predicted_seconds: float | None
) -> float:
    """How long a free device should wait for more jobs before it runs what it has.

    Only for jobs that this consumer has claimed and is preparing: a device that idles while nothing is on its way gains
    nothing, since whatever arrives during the batch makes the next one. Never longer than the batch itself would take.
    """
    if waiting_cost >= budget or not on_their_way:
        return 0.0
    cap = 0.020 if is_firm else 0.050
    return cap if predicted_seconds is None else min(cap, predicted_seconds)
