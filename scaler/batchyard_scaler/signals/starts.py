"""How long consumers take from being asked for until their first claim."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from batchyard.pool_figures import quantile
from batchyard.store.base import ConsumerInfo, ModelVersion

KEPT = 50
"""Starts of a pool that are remembered."""
PRIOR_SECONDS = 60.0
"""Of a pool without a single start, whose models nobody has loaded yet."""
PRIOR_BESIDE_LOADING_SECONDS = 10.0
"""A process and its libraries; the models' own loading comes on top, where it is known."""
LONGEST_MS = 3_600_000
"""A start that took longer says something about an outage, not about starts."""
CLAIM_MS = 10_000
"""A consumer without a claim so long after it was ready had nothing to claim: its start ended when it was ready."""
LATE_SHARE = 0.1
"""Of the usual time: what one that is late already is given again and again."""


class Starts:
    """Learns from consumers that claim, or are ready and have nothing to claim. Times are the store's, in milliseconds.
    Owned by one thread."""

    def __init__(self, *, known: Mapping[str, Sequence[float]] | None = None) -> None:
        self._seconds = {pool: deque(seconds, maxlen=KEPT) for pool, seconds in (known or {}).items()}
        self._asked: dict[str, deque[int]] = {}
        """Pool → when each replica was asked for whose consumer has not registered yet."""
        self._asked_at: dict[int, int] = {}
        """Consumer that is on its way → when it was asked for."""
        self._counted: set[int] = set()
        self._is_first_look = True

    def known(self) -> dict[str, list[float]]:
        """For the next scaler: JSON-like."""
        return {pool: [round(value, 3) for value in seconds] for pool, seconds in self._seconds.items()}

    def see(self, consumers: Sequence[ConsumerInfo], *, now_ms: int) -> None:
        """Take in who registered, became ready and claimed. Those ready before the first look were counted by
        another."""
        present = {info.id for info in consumers}
        self._counted &= present
        for gone in self._asked_at.keys() - present:
            del self._asked_at[gone]
        for info in consumers:
            if info.id in self._counted:
                continue
            if info.id not in self._asked_at:
                waiting = self._asked.get(info.pool)
                self._asked_at[info.id] = min(waiting.popleft(), info.started_at_ms) if waiting else info.started_at_ms
            if (ended_ms := _ended_ms(info, now_ms=now_ms)) is not None:
                self._count(info, ended_ms)
        self._is_first_look = False

    def _count(self, info: ConsumerInfo, ended_ms: int) -> None:
        took_ms = ended_ms - self._asked_at.pop(info.id)
        self._counted.add(info.id)
        if not self._is_first_look and 0 <= took_ms <= LONGEST_MS:
            self._seconds.setdefault(info.pool, deque(maxlen=KEPT)).append(took_ms / 1000)

    def pending(self, pool: str, *, unregistered: int, now_ms: int) -> list[int]:
        """When each replica was asked for that is held and has not registered: the newest asked for just now, the
        oldest taken back where there are fewer."""
        asked = self._asked.setdefault(pool, deque())
        while len(asked) > max(0, unregistered):
            asked.pop()
        while len(asked) < unregistered:
            asked.append(now_ms)
        return list(asked)

    def asked_at_ms(self, info: ConsumerInfo) -> int:
        return self._asked_at.get(info.id, info.started_at_ms)

    def percentile(self, pool: str, share: float, *, versions: Iterable[ModelVersion] = ()) -> float:
        """Seconds of a cold start; without history a stated prior."""
        if seconds := self._seconds.get(pool):
            return quantile(list(seconds), share)
        loads = [version.load_seconds for version in versions]
        if loads and None not in loads:
            return PRIOR_BESIDE_LOADING_SECONDS + sum(load for load in loads if load is not None)
        return PRIOR_SECONDS


def _ended_ms(info: ConsumerInfo, *, now_ms: int) -> int | None:
    """When its start ended; None where that is still to be seen."""
    if info.ready_at_ms is None:
        return None
    claimed_ms = info.stats.get("first_claim_ms")
    if isinstance(claimed_ms, int) and claimed_ms <= info.ready_at_ms + CLAIM_MS:
        return claimed_ms
    return info.ready_at_ms if now_ms > info.ready_at_ms + CLAIM_MS else None


def ready_in_seconds(*, asked_at_ms: int, now_ms: int, usual_seconds: float) -> float:
    """How long one that starts still needs."""
    return max(LATE_SHARE * usual_seconds, usual_seconds - (now_ms - asked_at_ms) / 1000)
