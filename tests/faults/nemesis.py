"""What is broken, and how: every fault by name, and a seeded schedule of them."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import msgspec
import sqlalchemy as sa

from batchyard.broker import Broker
from batchyard.broker.tickets import TICKET_BYTES
from batchyard.errors import BrokerDown
from batchyard.jobs import ID_STRIDE
from tests.faults.history import Call, Fault, Tickets
from tests.faults.load import RUSH_SECONDS, Load
from tests.faults.members import REPOSITORY, Member, now_ms, variables
from tests.faults.servers import Postgres, Valkey
from tests.faults.yard import QUEUES, Combination, Yard, mutated

LEADER_LEASE_SECONDS = 5.0
REAP_SECONDS = 5.0
UNCLAIMED_TICKETS = 12
HANDED_BACK_SECONDS = 5.0
"""For a broker to notice that a consumer is gone; nobody can take its tickets meanwhile."""
UNKNOWN_JOB = 1 << 40
"""Ids from here on are older than any job."""
LATE_WRITER_SECONDS = 120
BUSY_SECONDS = 10.0
AGAIN_SECONDS = (0.02, 0.03, 0.05, 0.1, 0.2)
SETTLED_SHARE = 0.75
"""Of the faults; the others are followed by the next one while their damage lasts."""
SETTLE_SECONDS = 15.0
PATIENT_SECONDS = 60.0
_HOLDERS = """
SELECT DISTINCT c.pid FROM jobs j JOIN consumers c ON c.id = j.owner
WHERE j.state = 1 AND c.state IN ('starting', 'ready', 'draining')
"""


class Nemesis:
    """Breaks one thing at a time. What a fault returns are the consumers whose jobs it took."""

    def __init__(
        self, yard: Yard, load: Load, rng: random.Random, *, mutant: str = "", is_patient: bool = False
    ) -> None:
        """`is_patient`: it waits, most of the times, until the victims of a fault hold nothing any more."""
        self._is_patient = is_patient
        self._yard = yard
        self._load = load
        self._rng = rng
        self._mutant = mutant

    def strike(self, name: str) -> None:
        """Inject one fault, heal it, and write it down."""
        fault: Callable[[], Sequence[int] | None] = getattr(self, name)
        self._load.rush()
        time.sleep(self._rng.uniform(0, RUSH_SECONDS))
        began = now_ms()
        victims = fault() or ()
        self._yard.history.add([Fault(name=name, began_ms=began, healed_ms=now_ms(), victims=tuple(victims))])
        if self._rng.random() < SETTLED_SHARE:
            self._settle(victims)

    def _settle(self, victims: Sequence[int]) -> None:
        """Wait for a claim, so that the next fault meets a system at work; not for ever."""
        [(last,)] = self._yard.select("SELECT coalesce(max(seq), 0) FROM faults_changes")
        claimed = "SELECT 1 FROM faults_changes WHERE seq > :last AND went = 1 AND came = 0 LIMIT 1"
        give_up = time.monotonic() + SETTLE_SECONDS
        while not self._yard.select(claimed, last=last) and time.monotonic() < give_up:
            time.sleep(0.05)
        if self._is_patient:
            give_up = time.monotonic() + PATIENT_SECONDS
            held = "SELECT 1 FROM jobs WHERE state = 1 AND owner = :owner LIMIT 1"
            while any(self._yard.select(held, owner=owner) for owner in victims) and time.monotonic() < give_up:
                time.sleep(0.2)

    # --- processes ---

    def consumer_killed(self) -> Sequence[int]:
        return self._end(self._busy_consumer(), signal.SIGKILL)

    def consumers_killed(self) -> Sequence[int]:
        self._busy_consumer()
        return [owner for member in self._yard.consumers for owner in self._end(member, signal.SIGKILL)]

    def consumer_stays_away(self) -> Sequence[int]:
        """Killed, and nobody who starts tells what it did: its lease has to run out."""
        away = self._yard.lease_seconds + REAP_SECONDS + 1
        return self._end(self._busy_consumer(), signal.SIGKILL, stay_away_seconds=away)

    def consumer_terminated(self) -> Sequence[int]:
        return self._end(self._busy_consumer(), signal.SIGTERM)

    def consumer_terminated_again_and_again(self) -> Sequence[int]:
        """Told once more it waits for no batch, and what it gives back then was preempted."""
        member = self._busy_consumer()
        pid, victims = member.pid, self._end(member, signal.SIGTERM)
        for seconds in AGAIN_SECONDS:
            time.sleep(seconds)
            if member.pid == pid:
                member.send(signal.SIGTERM)
        return victims

    def consumer_paused_past_its_lease(self) -> Sequence[int]:
        member = self._busy_consumer()
        victims = self._yard.owners(member.pid)
        self._pause(member, self._yard.lease_seconds + REAP_SECONDS)
        return victims

    def consumer_paused(self) -> None:
        self._pause(self._rng.choice(self._yard.consumers), self._yard.lease_seconds / 3)

    def api_killed(self) -> None:
        self._rng.choice(self._yard.apis).send(signal.SIGKILL)

    def api_terminated(self) -> None:
        self._rng.choice(self._yard.apis).send(signal.SIGTERM)

    def leader_killed(self) -> None:
        (self._yard.leader() or self._rng.choice(self._yard.apis)).send(signal.SIGKILL)

    def leader_paused_past_its_lease(self) -> None:
        """Another one leads when it goes on."""
        self._pause(self._yard.leader() or self._rng.choice(self._yard.apis), LEADER_LEASE_SECONDS + 1)

    def late_writes(self) -> None:
        """A consumer of our own writes what it no longer may; see `late_writer`."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.late_writer", str(self._yard.folder)],
            cwd=REPOSITORY,
            env=mutated(variables(), self._mutant),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=LATE_WRITER_SECONDS,
            check=True,
        )
        self._yard.history.add(msgspec.json.decode(line, type=Call) for line in done.stdout.splitlines())

    # --- the broker ---

    def broker_killed(self) -> None:
        self._yard.broker.process.end()
        time.sleep(self._rng.uniform(0, 1))
        self._yard.broker.process.start()

    def broker_paused(self) -> None:
        self._yard.broker.process.pause()
        time.sleep(3)
        self._yard.broker.process.go_on()

    def broker_emptied(self) -> None:
        self._yard.broker.empty(QUEUES)

    def broker_cut_off(self) -> None:
        self._yard.broker.proxy.cut()

    def broker_silent(self) -> None:
        """Connections stay and carry nothing."""
        self._yard.broker.proxy.hold_up()
        time.sleep(2)
        self._yard.broker.proxy.let_through()

    def broker_full(self) -> None:
        assert isinstance(self._yard.broker, Valkey)
        self._yard.broker.refuse_writes(refuse=True)
        time.sleep(2)
        self._yard.broker.refuse_writes(refuse=False)

    # --- tickets ---

    def tickets_repeated(self) -> None:
        """Of queued, running and ended jobs alike, many times and in any order."""
        rows = self._yard.select("SELECT id, queue_id FROM jobs ORDER BY id DESC LIMIT 300")
        pairs = [(row.queue_id, row.id) for row in rows] * 5
        self._rng.shuffle(pairs)
        for name in QUEUES:
            for queue_id in {queue_id for queue_id, _ in pairs}:
                # Half of them land in the queue of the other lane.
                self._publish(name, queue_id, [job for queue, job in pairs if queue == queue_id])

    def tickets_forged(self) -> None:
        """Of jobs and queues that do not exist, and messages that are no tickets."""
        for name in QUEUES:
            self._publish(name, 1, list(range(UNKNOWN_JOB, UNKNOWN_JOB + 100)))
            self._publish(name, 999, [UNKNOWN_JOB])
            for body in (b"", b"\x80\x04cos\nsystem\n", b'{"body": 1}', b"[" * 5000, b"x" * (8 * TICKET_BYTES)):
                self._yard.broker.push(name, body)

    def killed_between_pop_and_claim(self) -> Sequence[int]:
        """Tickets are taken that cannot be claimed, and then who took them is gone: the broker has them again."""
        broker = Broker(self._yard.broker.direct)
        queue_ids = [row.id for row in self._yard.select("SELECT id FROM queues ORDER BY lane")]
        published = len(QUEUES) * UNCLAIMED_TICKETS
        with self._yard.database.writers_locked_out():
            self._yard.broker.empty(QUEUES)
            for name, queue_id in zip(QUEUES, queue_ids, strict=True):
                for number in range(UNCLAIMED_TICKETS):
                    broker.publish(name, queue_id, [UNKNOWN_JOB + number * ID_STRIDE])
            time.sleep(1)
            victims = [owner for member in self._yard.consumers for owner in self._end(member, signal.SIGKILL)]
            kept = 0
            # kombu's Redis transport takes a ticket off its list at once: there an acknowledgement means nothing.
            if not isinstance(self._yard.broker, Valkey):
                give_up = time.monotonic() + HANDED_BACK_SECONDS
                while kept < published and time.monotonic() < give_up:
                    kept = sum(broker.depths(QUEUES))
                self._yard.history.add([Tickets(published=published, kept=kept)])
        broker.close()
        return victims

    # --- the database ---

    def writers_locked_out(self) -> None:
        with self._yard.database.writers_locked_out():
            time.sleep(self._rng.uniform(0.5, 3))

    def database_stopped(self) -> None:
        self._postgres.process.end()
        time.sleep(self._rng.uniform(0, 2))
        self._postgres.process.start()

    def sessions_ended(self) -> None:
        for _ in range(5):
            self._postgres.end_sessions()
            time.sleep(0.2)

    def database_cut_off(self) -> None:
        for _ in range(5):
            self._postgres.proxy.cut()
            time.sleep(0.2)

    def database_silent(self) -> None:
        self._postgres.proxy.hold_up()
        time.sleep(1.5)
        self._postgres.proxy.let_through()

    def answers_lost(self) -> None:
        """Connections end just when the database tells that it has committed."""
        for _ in range(4):
            self._load.rush()
            self._postgres.proxy.lose_answers(4)
            time.sleep(RUSH_SECONDS)

    # --- steps ---

    @property
    def _postgres(self) -> Postgres:
        assert isinstance(self._yard.database, Postgres)
        return self._yard.database

    def _busy_consumer(self) -> Member:
        """One that holds jobs right now; after a while of none, any."""
        members = self._rng.sample(self._yard.consumers, len(self._yard.consumers))
        give_up = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < give_up:
            held = {row.pid for row in self._yard.select(_HOLDERS)}
            for member in members:
                if member.pid in held:
                    return member
            time.sleep(0.01)
        return members[0]

    def _end(self, member: Member, number: signal.Signals, **more: float) -> Sequence[int]:
        victims: Sequence[int] = ()
        with suppress(sa.exc.OperationalError):
            victims = self._yard.owners(member.pid)
        member.send(number, **more)
        return victims

    def _pause(self, member: Member, seconds: float) -> None:
        member.send(signal.SIGSTOP)
        time.sleep(seconds)
        member.send(signal.SIGCONT)

    def _publish(self, name: str, queue_id: int, ids: Sequence[int]) -> None:
        broker = Broker(self._yard.broker.direct)
        with suppress(BrokerDown):
            broker.publish(name, queue_id, ids)
        broker.close()


EVERYWHERE = (
    "consumer_killed",
    "consumers_killed",
    "consumer_stays_away",
    "consumer_terminated",
    "consumer_terminated_again_and_again",
    "consumer_paused_past_its_lease",
    "consumer_paused",
    "api_killed",
    "api_terminated",
    "leader_killed",
    "leader_paused_past_its_lease",
    "late_writes",
    "broker_killed",
    "broker_paused",
    "broker_emptied",
    "broker_cut_off",
    "broker_silent",
    "tickets_repeated",
    "tickets_forged",
    "killed_between_pop_and_claim",
    "writers_locked_out",
)
ON_REDIS = ("broker_full",)
ON_POSTGRES = ("database_stopped", "sessions_ended", "database_cut_off", "database_silent", "answers_lost")


def faults_of(combination: Combination) -> Sequence[str]:
    """Every fault that can be injected there."""
    return (
        *EVERYWHERE,
        *(ON_REDIS if combination.broker == "redis" else ()),
        *(ON_POSTGRES if combination.database == "postgres" else ()),
    )


def schedule(names: Sequence[str], *, count: int, rng: random.Random) -> Iterator[tuple[float, str]]:
    """So many faults, each after a pause in seconds: all in some order, then all in another."""
    left: list[str] = []
    for _ in range(count):
        if not left:
            left = rng.sample(list(names), len(names))
        yield rng.uniform(0.1, 1.5), left.pop()
