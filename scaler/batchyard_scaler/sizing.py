"""Decisions about all pools, round by round, by the one scaler that leads; and what they say written down."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from batchyard.errors import BatchyardError, ServerError, Unavailable
from batchyard.settings import Settings
from batchyard.store.base import JobStore, Lease, LeaseLost, PoolDecision
from batchyard.telemetry import log_event
from batchyard_scaler.policy.checking import ContradictoryFleet
from batchyard_scaler.policy.deciding import decide
from batchyard_scaler.policy.records import Decision, Demand, Pool
from batchyard_scaler.signals.fleet import Held, Look, Most, Signals

LEASE_NAME = "scaler"
LEASE_SECONDS = 5.0
"""A scaler that dies is followed after this long."""
LEAD_SECONDS = 1.5
"""Between renewals, and between the attempts of those that do not lead."""
REPORT_MS = 5_000
"""How often a decision is written down while it stays the same."""

log = logging.getLogger(__name__)


class Sizer:
    """Decides while it leads. Owned by one thread."""

    def __init__(self, settings: Settings, *, store: JobStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lease = Lease(name=LEASE_NAME, holder=secrets.randbits(62))
        self._signals = Signals(settings, store, lease=self._lease)
        self._term: int | None = None
        """Of the lease; 0: another scaler leads, None: not known yet."""
        self._lead_at = -math.inf
        self._written: dict[str, PoolDecision] = {}

    def round(self, held: Held, most: Most = lambda _: None) -> list[PoolDecision] | None:
        """One decision about every pool, written down; None where another scaler leads. Unavailable."""
        if not self._lead():
            return None
        try:
            return self._decide(held, most)
        except LeaseLost:  # this process was stopped for longer than its lease
            self._note(0)
            return None

    def _decide(self, held: Held, most: Most) -> list[PoolDecision]:
        zones = {name: made.zones for name, made in self._written.items()}
        look = self._signals.look(held=held, most=most, asked_zones=zones)
        try:
            decided = decide(look.fleet)
        except ContradictoryFleet as contradiction:
            raise ServerError(f"nothing can be decided: {contradiction}") from contradiction
        made = [_told(decision, pool, look) for decision, pool in zip(decided, look.fleet.pools, strict=True)]
        self._report(made)
        return made

    def resign(self) -> None:
        """Let another scaler lead at once, where this one does."""
        if self._term:
            self._term = 0
            self._store.resign(LEASE_NAME, holder=self._lease.holder)

    def _lead(self) -> bool:
        now = self._clock()
        if now - self._lead_at >= LEAD_SECONDS:
            term = self._store.lead(LEASE_NAME, holder=self._lease.holder, lease_ms=round(LEASE_SECONDS * 1000))
            if term and term != self._term:  # perhaps once more: what another did meanwhile is in the store
                self._signals.begin(self._store.learned())
                self._written.clear()
            self._note(term)
            self._lead_at = now
        return bool(self._term)

    def _note(self, term: int) -> None:
        if term != self._term:
            log_event(log, "leadership_changed", leads=term > 0)
        self._term = term

    def _report(self, made: Sequence[PoolDecision]) -> None:
        """Write down those that are new, and those whose last word has aged."""
        due = [decision for decision in made if _is_due(decision, self._written.get(decision.pool))]
        if due:
            self._store.report_decision(*due, lease=self._lease)
        for decision in due:
            last = self._written.get(decision.pool)
            before = 0 if last is None else last.replicas
            if last is None or before != decision.replicas:
                log_event(
                    log,
                    "pool_scaled",
                    pool=decision.pool,
                    before=before,
                    replicas=decision.replicas,
                    rule=decision.rule,
                    reason=decision.reason,
                )
        self._written |= {decision.pool: decision for decision in due}


def _is_due(made: PoolDecision, last: PoolDecision | None) -> bool:
    if last is None or (made.replicas, made.rule, made.zones) != (last.replicas, last.rule, last.zones):
        return True
    return abs(made.decided_at_ms - last.decided_at_ms) >= REPORT_MS


def _told(decision: Decision, pool: Pool, look: Look) -> PoolDecision:
    mine = [demand for demand in look.fleet.demands if pool.may_do(demand)]
    due = decision.binding_deadline_seconds
    return PoolDecision(
        pool=decision.pool,
        replicas=decision.replicas,
        live=look.live.get(pool.name, 0),
        rule=decision.rule,
        reason=decision.reason,
        backlog_jobs=sum(one.jobs for demand in mine for one in demand.due),
        backlog_seconds=_seconds(mine),
        binding_deadline_ms=None if due is None or math.isinf(due) else look.now_ms + round(due * 1000),
        unmeetable_jobs=decision.unmeetable_jobs,
        zones={name: count for name, count in decision.zones.items() if name},
        decided_at_ms=look.now_ms,
    )


def _seconds(demands: Sequence[Demand]) -> float | None:
    """None where a speed is only guessed."""
    busy = [demand for demand in demands if demand.due]
    if any(demand.is_prior for demand in busy):
        return None
    return sum(one.work_seconds for demand in busy for one in demand.due)


def look_until(stop: threading.Event, look: Callable[[], None], *, every_seconds: float) -> None:
    """Look again and again; while the database is away, or nothing can be decided, everything stays as it is."""
    is_away = False
    while not stop.wait(every_seconds):
        try:
            look()
            is_away = False
        except BatchyardError as error:
            if not is_away:
                event = "database_away" if isinstance(error, Unavailable) else "deciding_failed"
                log_event(log, event, level=logging.WARNING, problem=error.message)
            is_away = True
