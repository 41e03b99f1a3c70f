"""What happened in one run: every client's call, every change of a job's row, every fault, and what stood at the end.

Times are Unix milliseconds; clients, databases and faults share one machine's clock. A history is kept as JSON lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from batchyard.jobs import State


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event", tag=str.lower):
    """One line of a history."""


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an answer described a job."""

    state: str
    value: Any = None
    """Its result."""


class Call(Event, frozen=True, kw_only=True):
    """One request of a client, from its sending to its answer."""

    did: Literal["submit", "chunk", "poll", "cancel", "amend", "redrive", "trespass", "stream"]
    """trespass: asked for a job of another tenant. stream: read the results of a bulk, wholly."""
    tenant: str
    began_ms: int
    ended_ms: int
    outcome: Literal["ok", "fail", "unknown"]
    """unknown: no answer, or one that leaves open whether it was carried out."""
    status: int = 0
    """Of HTTP; 0 without an answer."""
    key: str = ""
    """The idempotency key; "" without one."""
    tokens: tuple[str, ...] = ()
    """Of the inputs sent, in order. Each token is meant to become one job."""
    ids: tuple[int, ...] = ()
    """Jobs: made by it, asked for, or streamed; in order."""
    seen: dict[int, Seen] = {}


class Transition(Event, frozen=True, kw_only=True):
    """One change of a job's row, as a trigger of the database saw it inside its transaction."""

    seq: int
    """Rises along the changes of each job."""
    at_ms: int
    job: int
    came: State | None
    """From which state; None: the job was made."""
    went: State | None
    """To which state; None: the row was deleted."""
    attempt_before: int = 0
    attempt: int = 0
    owner_before: int | None = None
    owner: int | None = None
    failures_before: int = 0
    failures: int = 0
    crashes_before: int = 0
    crashes: int = 0
    preemptions_before: int = 0
    preemptions: int = 0
    cancel_requested: bool = False
    deadline_ms: int | None = None
    started_ms: int | None = None
    """When the database says that it was claimed."""
    owner_state: str | None = None
    """Of the consumer that owns it after the change, at that moment."""
    owner_lease_ms: int | None = None


class Death(Event, frozen=True, kw_only=True):
    """A consumer's registration was declared dead."""

    at_ms: int
    owner: int
    pid: int
    lease_until_ms: int
    """As it stood before."""


class Ended(Event, frozen=True, kw_only=True):
    """A process of the run ended, by a fault or by itself."""

    at_ms: int
    pid: int
    role: str


class Fault(Event, frozen=True, kw_only=True):
    """Something was broken at `began_ms`, and no longer from `healed_ms` on."""

    name: str
    began_ms: int
    healed_ms: int
    victims: tuple[int, ...] = ()
    """Consumers whose jobs it took: by the id of their registration."""


class Tickets(Event, frozen=True, kw_only=True):
    """Tickets that nobody could claim were taken by consumers that then died: how many came back to the broker."""

    published: int
    kept: int


class Calm(Event, frozen=True, kw_only=True):
    """A stretch of load without faults, from an empty system to an empty system."""

    ticketed: int
    """Ids of jobs in tickets that were published."""
    claimed: int


class Row(Event, frozen=True, kw_only=True):
    """A job as it stood at the end."""

    id: int
    tenant: str
    token: str
    state: State
    attempt: int
    owner: int | None
    failures: int
    max_failures: int
    crashes: int
    cancel_requested: bool = False
    deadline_ms: int | None = None
    finished_ms: int | None = None
    redrive_of: int | None = None
    value: Any = None
    """Its result."""
    error: str = ""
    """Code of its error."""
    won_attempt: int | None = None
    """As its result tells."""
    won_by: int | None = None


class Sums(Event, frozen=True, kw_only=True):
    """What the ledgers said at the end."""

    tenant: str
    backlog: dict[str, int]
    """Jobs by the word of their state."""
    used_jobs: int
    """Successes that were billed."""
    wrong_lines: int = 0
    """Of the ledger: by queue, priority, state and minute of the deadline, those that counting contradicts."""


class Setting(Event, frozen=True, kw_only=True):
    """What the run was told, and the times that it was allowed."""

    seed: int
    lease_ms: int
    recovery_ms: int
    """After each fault work must go on within this."""


Line = Call | Transition | Death | Ended | Fault | Tickets | Calm | Row | Sums | Setting
_LINE = msgspec.json.Decoder(Line)


@dataclass(kw_only=True)
class History:
    """The lines of one run by kind; each list in the order in which things happened."""

    setting: Setting
    calls: list[Call] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    tickets: list[Tickets] = field(default_factory=list)
    calms: list[Calm] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)

    def add(self, lines: Iterable[Line]) -> None:
        """Take in lines of any kind. Safe from several threads, for each only appends to a list."""
        for line in lines:
            self._lists[type(line)].append(line)

    @property
    def lines(self) -> list[Line]:
        return [self.setting, *(line for lines in self._lists.values() for line in lines)]

    @property
    def _lists(self) -> dict[type[Event], list[Any]]:
        return {
            Call: self.calls,
            Transition: self.transitions,
            Death: self.deaths,
            Ended: self.ended,
            Fault: self.faults,
            Tickets: self.tickets,
            Calm: self.calms,
            Row: self.rows,
            Sums: self.sums,
        }

    def save(self, path: Path) -> str:
        """Write the lines and return their SHA-256."""
        encoded = b"".join(msgspec.json.encode(line) + b"\n" for line in self.lines)
        path.write_bytes(encoded)
        return hashlib.sha256(encoded).hexdigest()

    def about(self, job: int) -> list[Line]:
        """What happened to this job, in the order of time; of calls only what concerns it."""
        lines: list[Line] = [_narrowed(call, job) for call in self.calls if job in call.ids or job in call.seen]
        lines += [change for change in self.transitions if change.job == job]
        owners = {change.owner for change in self.transitions if change.job == job}
        lines += [death for death in self.deaths if death.owner in owners]
        lines += [fault for fault in self.faults if owners & set(fault.victims)]
        return [*sorted(lines, key=_moment), *(row for row in self.rows if row.id == job)]


def _moment(line: Line) -> int:
    return (
        line.began_ms if isinstance(line, Call | Fault) else line.at_ms if isinstance(line, Transition | Death) else 0
    )


def _narrowed(call: Call, job: int) -> Call:
    tokens = dict(zip(call.ids, call.tokens, strict=False))
    seen = {job: call.seen[job]} if job in call.seen else {}
    return msgspec.structs.replace(call, ids=(job,), tokens=(tokens[job],) if job in tokens else (), seen=seen)


def load(path: Path) -> History:
    """Read what `save` wrote."""
    setting, *lines = [_LINE.decode(line) for line in path.read_bytes().splitlines()]
    assert isinstance(setting, Setting)
    history = History(setting=setting)
    history.add(lines)
    return history
