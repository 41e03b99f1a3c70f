"""Which jobs are to blame for the end of a consumer's process. Pure.

One bad input can end a process that holds thousands of good jobs. What it was executing at that moment makes *suspects*
of them, which cost nobody anything but their company: a suspect runs alone from then on. A process that ends while a
single job is executing is that job's fault, and CRASH_LIMIT of those end the job too. Where nobody could say what was
executing (a machine that went away), two such ends make suspects of all that was held.
"""

from __future__ import annotations

import msgspec

from batchyard.jobs import ErrorInfo

CRASH_LIMIT = 3
"""Processes that a job may end while it runs alone; then it is failed."""
UNEXPLAINED_LIMIT = 2
"""Ends that nobody could explain; a job that was held through so many is a suspect."""

CRASH_LOOP = "crash_loop"
"""Code of the error of a job that is failed for them."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is known against one job."""

    suspect: bool = False
    crashes: int = 0
    """Processes that ended while it alone was executing."""
    unexplained: int = 0
    """Processes that held it and ended without anybody knowing what they executed."""

    @property
    def is_fatal(self) -> bool:
        return self.crashes >= CRASH_LIMIT


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a process that nobody had asked for."""

    executing: frozenset[int] | None
    """Jobs that were being executed; None where nobody knows."""
    cause: str | None = None
    """For people: "was ended by SIGSEGV"."""


def charged(job_id: int, record: Record, death: Death) -> Record:
    """What is known against a job that the dead consumer held."""
    if death.executing is None:
        unexplained = record.unexplained + 1
        suspect = record.suspect or unexplained >= UNEXPLAINED_LIMIT
        return Record(suspect=suspect, crashes=record.crashes, unexplained=unexplained)
    if job_id not in death.executing:
        return record
    alone = len(death.executing) == 1
    return Record(suspect=True, crashes=record.crashes + alone, unexplained=record.unexplained)


def crash_error(record: Record, death: Death) -> ErrorInfo:
    """Why a job failed that ends every process it runs in."""
    how = "ended" if death.cause is None else death.cause
    message = f"the consumer's process {how} while it ran this job alone, {record.crashes} times now"
    return ErrorInfo(code=CRASH_LOOP, message=message)
