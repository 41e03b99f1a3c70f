"""Changes of the product's code that break a promise each, and the rules of the checker that must catch them.

They prove that the suite would notice. `mutated/sitecustomize.py` applies them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """In the source of `module`, `old` becomes `new`."""

    module: str
    old: str
    new: str
    faults: tuple[str, ...]
    """What is injected for it to show."""
    caught_by: frozenset[str]
    """Rules, of which one at least must find something."""
    broker: str = "redis"

    def applied(self, source: str) -> str:
        """The changed source; ValueError where it does not have the place to be changed."""
        if self.old not in source:
            raise ValueError(f"{self.module} no longer has {self.old!r}: change the mutant with it")
        return source.replace(self.old, self.new)


_STALE = frozenset({"results_are_own", "winner_is_latest"})

MUTANTS = {
    "attempt is not compared": Mutant(
        module="batchyard.store.sqlite.claims",
        old="AND attempt = ?4",
        new="AND ?4 = ?4",
        faults=("late_writes",),
        caught_by=_STALE,
    ),
    "owner is not compared": Mutant(
        module="batchyard.store.sqlite.claims",
        old="AND +owner = ?5",
        new="AND ?5 = ?5",
        faults=("late_writes",),
        caught_by=_STALE,
    ),
    "dead consumers are not swept": Mutant(
        module="batchyard_producer.chores",
        old='if answering and self._is_due("reap"',
        new='if False and self._is_due("reap"',
        faults=("consumer_killed", "consumer_killed"),
        caught_by=frozenset({"accepted_jobs_end", "work_resumes"}),
    ),
    "consumers are swept before their lease is over": Mutant(
        module="batchyard.store.reaping",
        old="consumers.c.lease_until <",
        new="consumers.c.lease_until - 3_600_000 <",
        faults=("broker_emptied",) * 3,
        caught_by=frozenset({"owners_are_alive"}),
    ),
    "preemptions are charged as failures": Mutant(
        module="batchyard.store.sql",
        old='PREEMPTED = {"preemptions": jobs.c.preemptions + 1}',
        new='PREEMPTED = {"preemptions": jobs.c.preemptions + 1, "failures": jobs.c.failures + 1}',
        faults=("consumer_terminated_again_and_again",) * 4,
        caught_by=frozenset({"budgets_are_obeyed"}),
    ),
    "tickets are acknowledged before the claim": Mutant(
        module="batchyard_consumers.worker",
        old="HeldTicket(queue_id=queue_id, ids=ticket.ids, message=message)",
        new="HeldTicket(queue_id=queue_id, ids=ticket.ids, message=message.ack())",
        faults=("killed_between_pop_and_claim",),
        caught_by=frozenset({"claims_come_before_acknowledgements"}),
        broker="rabbitmq",
    ),
}
