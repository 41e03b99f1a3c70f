"""What may happen to the simulated system, for Hypothesis to choose from."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batchyard.errors import Conflict, Gone, NotFound
from batchyard.jobs import Submission
from batchyard.store.base import BulkConfig, BulkView
from tests.faults.simulation.consumer import LEASE_SECONDS, SimulatedConsumer
from tests.faults.simulation.parts import Fault
from tests.faults.simulation.world import LATE_WRITES, World

MOODS = st.sampled_from([*["echo"] * 5, *["mend"] * 3, "flaky", "flaky", "fail", "poison"])
FAULTS = st.sampled_from([None, None, *Fault])
DEADLINES_SECONDS = st.sampled_from([None, None, None, 0.2, 4.0, 60.0])
SOME_MOODS = st.lists(MOODS, min_size=1, max_size=6)
JOBS = st.sampled_from([0, 1, 8])
"""Of one batch."""
THEN = st.sampled_from(["nothing", "write", "hand back", "write and hand back"])
PLACES = st.integers(0, 5)
"""Of one among some, counted around."""
SUSPENDED_SECONDS = st.sampled_from([0.01, 1.0, LEASE_SECONDS + 0.5, 10 * LEASE_SECONDS])

ASKED = ["cancel", "cancel", "amend", "forget", "redrive", "open bulk", "pause bulk", "resume bulk", "cancel bulk"]
FATES = [
    "join",
    "join",
    "pause",
    "stick before run",
    "stick before write",
    "leave",
    "die",
    "die writing",
    "die claiming",
]
TROUBLE = [
    *("all is suspended", "dispatcher is killed", "dispatcher meets a fault"),
    *("database is away for consumers", "database is away for the leader", "broker is down"),
    *("wipe", "lost", "ambiguous", "arrive", "lose", "double", "reverse", "delay", "misdirect", "forge"),
]


class Simulation(RuleBasedStateMachine):
    """Rules are things that happen; what must hold is checked after each, and all that was promised at the end."""

    @initialize(consumers=st.integers(1, 2), claims_idly=st.booleans(), shares=st.booleans(), moods=SOME_MOODS)
    def begin(self, consumers: int, claims_idly: bool, shares: bool, moods: list[str]) -> None:
        self.world = World(claims_idly=claims_idly, shares=shares)
        self.keys = 0
        self.bulks: list[BulkView] = []
        self.world.consumers += [SimulatedConsumer(self.world) for _ in range(consumers)]
        self.world.live(1.0)
        self._submit(moods)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.heal()
            self.world.drain()
            self.world.check_end()
        finally:
            self.world.close()

    # --- clients ---

    @precondition(lambda self: self.world.open_jobs() < 20)
    @rule(
        moods=SOME_MOODS,
        queue=st.integers(0, 1),
        tenant=st.integers(0, 1),
        priority=st.sampled_from([0, 5, 9]),
        deadline_seconds=DEADLINES_SECONDS,
        max_failures=st.integers(1, 3),
        into_bulk=st.booleans(),
        fault=FAULTS,
        publishes=st.booleans(),
        twice=st.booleans(),
    )
    def submit(
        self,
        *,
        moods: list[str],
        queue: int,
        tenant: int,
        deadline_seconds: float | None,
        into_bulk: bool,
        fault: Fault | None,
        publishes: bool,
        twice: bool,
        **values: int,
    ) -> None:
        """`publishes` false: the API dies between the commit and the tickets. `twice`: two calls at once, one key."""
        world = self.world
        deadline_ms = None if deadline_seconds is None else world.clock.ms() + round(1000 * deadline_seconds)
        if into_bulk and self.bulks:
            where = {"bulk_id": self.bulks[-1].id}
        else:
            where = {"queue_id": world.queue_ids[queue], "tenant_id": world.tenants[tenant]}
        world.api.fault = fault
        self._submit(
            moods,
            deadline_ms=deadline_ms,
            start_by_ms=deadline_ms,
            publishes=publishes,
            calls=2 if twice else 1,
            **where,
            **values,
        )

    def _submit(self, moods: list[str], *, publishes: bool = True, calls: int = 1, **values: Any) -> None:
        self.keys += 1
        shared = {"tenant_id": 1, "queue_id": self.world.queue_ids[0], **values}
        made = Submission(
            inputs=[b'{"do":"%b","n":%d}' % (mood.encode(), n) for n, mood in enumerate(moods)],
            costs=[1 + n for n in range(len(moods))],
            idempotency_key=f"key-{self.keys}",
            idempotency_digest=b"digest",
            ticketed=self.world.may_ticket(shared["queue_id"], len(moods)),
            **shared,
        )
        self.world.submit([made] * calls, publishes=publishes)

    @precondition(lambda self: self.world.unanswered)
    @rule(fault=FAULTS)
    def ask_again(self, fault: Fault | None) -> None:
        """Who was not answered sends the same once more."""
        for made in list(self.world.unanswered.values()):
            self.world.api.fault = fault
            self.world.submit([made])

    @precondition(lambda self: self.world.accepted)
    @rule(what=st.sampled_from(ASKED), place=st.integers(0, 12), deadline_seconds=DEADLINES_SECONDS, fault=FAULTS)
    def ask(self, what: str, *, place: int, deadline_seconds: float | None, fault: Fault | None) -> None:
        """Something of one of the latest jobs, or of the latest bulk."""
        ids = list(self.world.accepted)
        job_id = ids[-1 - place % len(ids)]
        tenant_id = self.world.accepted[job_id][0]
        deadline_ms = None if deadline_seconds is None else self.world.clock.ms() + round(1000 * deadline_seconds)
        with suppress(Conflict, NotFound, Gone):
            match what:
                case "cancel":
                    self.world.store.cancel(job_id, tenant_id=tenant_id)
                case "amend":
                    self.world.store.amend(
                        job_id, tenant_id=tenant_id, priority=9, deadline_ms=deadline_ms, start_by_ms=deadline_ms
                    )
                case "forget":
                    self.world.store.forget(job_id, tenant_id=tenant_id)
                    self.world.deleted.add(job_id)
                case "redrive":
                    self.world.redrive(job_id, tenant_id=tenant_id, fault=fault)
                case "pause bulk" | "resume bulk" if self.bulks:
                    self.world.store.pause_bulk(self.bulks[-1].id, tenant_id=1, paused=what == "pause bulk")
                case "cancel bulk" if self.bulks:
                    self.world.cancel_bulk(self.bulks.pop().id)
                case _:
                    config = BulkConfig(tenant_id=1, queue_id=self.world.queue_ids[0], defaults=b"{}")
                    self.bulks.append(self.world.store.create_bulk(config))

    # --- consumers ---

    @precondition(lambda self: self.world.consumers and self.world.open_jobs())
    @rule(place=PLACES, idly=st.booleans(), jobs=JOBS, is_told=st.booleans(), then=THEN, fault=FAULTS)
    def work(self, place: int, *, idly: bool, jobs: int, is_told: bool, then: str, fault: Fault | None) -> None:
        """Claim, run so many, and what becomes of the results. `is_told`: should it die of them, somebody will say."""
        consumer = self._one(self.world.consumers, place)
        if idly:
            consumer.claim_head()
        else:
            consumer.take_tickets()
        consumer.run(jobs, is_told=is_told)
        if consumer in self.world.consumers:
            if "write" in then:
                self._write(consumer, fault)
            if "hand back" in then:
                consumer.hand_back(preempted=is_told, late=False)

    @precondition(lambda self: any(consumer.done for consumer in self.world.consumers))
    @rule(place=PLACES, fault=FAULTS)
    def write(self, place: int, fault: Fault | None) -> None:
        self._write(self._one([each for each in self.world.consumers if each.done], place), fault)

    def _write(self, consumer: SimulatedConsumer, fault: Fault | None) -> None:
        consumer.link.fault = fault
        consumer.write()
        consumer.link.fault = None

    @precondition(lambda self: self.world.late)
    @rule(place=st.integers(0, LATE_WRITES - 1))
    def arrive_late(self, place: int) -> None:
        """One of the latest writes, for the first time or once more."""
        self.world.late[-1 - place % len(self.world.late)]()

    @precondition(lambda self: any(consumer.held for consumer in self.world.consumers))
    @rule(place=PLACES, preempted=st.booleans(), late=st.booleans())
    def hand_back(self, place: int, *, preempted: bool, late: bool) -> None:
        consumer = self._one([each for each in self.world.consumers if each.held], place)
        consumer.hand_back(preempted=preempted, late=late)

    @rule(what=st.sampled_from(FATES), place=PLACES, executing=st.sampled_from([None, 0, 1, 3]))
    def consumer(self, what: str, *, place: int, executing: int | None) -> None:
        """`executing`: so many jobs when it died, as somebody tells; None: nobody is left who could."""
        consumers = self.world.consumers
        if what == "join" or not consumers:
            if len(consumers) < 3:
                consumers.append(SimulatedConsumer(self.world))
            return
        consumer = self._one(consumers, place)
        if what == "pause":
            consumer.is_paused = True
        elif what in {"stick before run", "stick before write"}:
            consumer.stuck_before = what.removeprefix("stick before ")
        elif what == "die claiming":
            consumer.claim_head(dies=True)
        elif what == "leave":
            consumers.remove(consumer)
            self.world.store.deregister(consumer.owner)
        else:
            if what == "die writing" and consumer.done:
                consumer.write_late()
            told = None if executing is None else [job.id for job in consumer.held[:executing]]
            self.world.bury(consumer, executing=told)

    @staticmethod
    def _one(some: list[SimulatedConsumer], place: int) -> SimulatedConsumer:
        return some[place % len(some)]

    # --- time, the leader and the servers ---

    @rule(seconds=st.sampled_from([1.0, 2.0, LEASE_SECONDS + 2, 3 * LEASE_SECONDS]))
    def live(self, seconds: float) -> None:
        self.world.live(seconds)

    @rule(what=st.sampled_from(TROUBLE), place=st.integers(0, 1), fault=FAULTS, seconds=SUSPENDED_SECONDS)
    def trouble(self, what: str, *, place: int, fault: Fault | None, seconds: float) -> None:
        """With the clock, a dispatcher, the database or the broker."""
        match what:
            case "all is suspended":
                self.world.clock.now += seconds
            case "dispatcher is killed":
                self.world.replace_dispatcher(place)
            case "dispatcher meets a fault":
                self.world.dispatcher_links[place].fault = fault
                self.world.dispatchers[place].round()
            case "database is away for consumers":
                for consumer in self.world.consumers:
                    consumer.link.is_away = True
            case "database is away for the leader":
                self.world.dispatcher_links[place].is_away = True
            case _:
                self._broker(what, self.world.queue_ids[place])

    def _broker(self, what: str, queue_id: int) -> None:
        broker = self.world.broker
        name = self.world.names[queue_id]
        waiting: list[Any] = broker.queues.setdefault(name, [])
        match what:
            case "wipe":
                broker.wipe()
            case "broker is down":
                broker.is_down = True
            case "lost" | "ambiguous":
                broker.fault = Fault.LOST_BEFORE if what == "lost" else Fault.LOST_AFTER
            case "arrive":
                broker.arrive()
            case "lose":
                del waiting[:1]
            case "double":
                waiting += waiting[:20]
            case "reverse":
                waiting.reverse()
            case "delay":
                broker.delay(name)
            case "misdirect":
                waiting += [(sum(self.world.queue_ids) - queue_id, ids) for _, ids in waiting[:20]]
            case "forge":
                waiting.append((queue_id, [*list(self.world.accepted)[:50], 7]))
