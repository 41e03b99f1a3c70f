"""What the real code stands on in the simulation: a clock, a broker and a database that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from batchyard.broker import TICKET_JOBS
from batchyard.broker.tickets import Ticket, cut_tickets
from batchyard.errors import BrokerDown, Unavailable


class Clock:
    """The clock of the database and of every process. Called, it tells seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def ms(self) -> int:
        return 1_763_694_000_000 + round(self.now * 1000)


class Fault(Enum):
    """What becomes of one call to the database."""

    LOST_BEFORE = "never arrives"
    LOST_AFTER = "is committed, and its answer lost"


class Link:
    """One process's way to the store. A fault meets the next call alone; `is_away` meets all."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.fault: Fault | None = None
        self.is_away = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._store, name)
        if name == "now_ms":  # an estimate of the process's own
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            fault, self.fault = self.fault, None
            if self.is_away or fault is Fault.LOST_BEFORE:
                raise Unavailable("the database is away")
            answer = method(*arguments, **named)
            if fault is Fault.LOST_AFTER:
                raise Unavailable("the answer was lost")
            return answer

        return call


class SimulatedBroker:
    """As much of a `Broker` as the dispatcher uses. Tickets wait in lists that a test may rearrange."""

    url = "simulated://"

    def __init__(self) -> None:
        self.queues: dict[str, list[Ticket]] = {}
        self.delayed: list[tuple[str, Ticket]] = []
        """Tickets on their way."""
        self.is_down = False
        self.fault: Fault | None = None
        """Of the next publish."""

    def publish(self, name: str, queue_id: int, ids: Sequence[int], *, ticket_jobs: int = TICKET_JOBS) -> int:
        self._answer()
        fault, self.fault = self.fault, None
        if fault is Fault.LOST_BEFORE:
            raise BrokerDown("the broker does not answer")
        tickets = cut_tickets(queue_id, ids, jobs=ticket_jobs)
        self.queues.setdefault(name, []).extend(tickets)
        if fault is Fault.LOST_AFTER:
            raise BrokerDown("the broker's answer was lost")
        return len(tickets)

    def depths(self, names: Sequence[str]) -> list[int]:
        self._answer()
        return [len(self.queues.get(name, ())) for name in names]

    def shout(self, topic: str, payload: bytes) -> None:
        """Nobody listens: grants and hints to other processes are lost, as they may be."""
        self._answer()

    def take(self, name: str) -> Ticket | None:
        """The oldest ticket of a queue."""
        waiting = self.queues.get(name)
        return waiting.pop(0) if waiting and not self.is_down else None

    def delay(self, name: str) -> None:
        """Take the oldest ticket off, to arrive later."""
        ticket = self.take(name)
        if ticket is not None:
            self.delayed.append((name, ticket))

    def arrive(self) -> None:
        """Let what was delayed arrive, behind all else."""
        for name, ticket in self.delayed:
            self.queues.setdefault(name, []).append(ticket)
        self.delayed.clear()

    def wipe(self) -> None:
        self.queues.clear()
        self.delayed.clear()

    def _answer(self) -> None:
        if self.is_down:
            raise BrokerDown("the broker does not answer")
