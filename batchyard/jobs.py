"""The life of a job: its states, the table of transitions, and the records that travel between processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

import msgspec


class State(IntEnum):
    """Where a job stands. The number is what the database stores."""

    QUEUED = 0
    """Waits to be claimed. Set by submission, by a release, by the reaper, and by the dispatcher for a due retry.
    A lost ticket is mended by the dispatcher's re-ticketing and by the idle claim, a passed deadline by the expirer."""

    RUNNING = 1
    """Held by one consumer under its lease. Set by a claim. Rescued by the reaper once the owner's lease is over."""

    WAITING = 2
    """Backs off after a retryable failure, or lets another job go first that computes the same. Set by its consumer.
    The dispatcher rescues it once `not_before` passes."""

    SUCCEEDED = 3
    """Has its result. Set by the owning consumer, fenced by owner and attempt. Terminal."""

    FAILED = 4
    """Has its error. Set by the owning consumer, fenced, or by the reaper for a job that ends
    its consumers. Terminal."""

    CANCELLED = 5
    """Withdrawn. Set by the API while queued or waiting, by the owner or the reaper while running. Terminal."""

    EXPIRED = 6
    """Not started by its deadline. Set by the dispatcher from queued or waiting only. Terminal."""

    @property
    def is_terminal(self) -> bool:
        return self >= State.SUCCEEDED

    @property
    def is_dead(self) -> bool:
        """Ended without a result: what may be redriven."""
        return self > State.SUCCEEDED

    @property
    def word(self) -> str:
        """The name used in the API, the SDK and metrics."""
        return self.name.lower()


TRANSITIONS: frozenset[tuple[State | None, State]] = frozenset(
    {
        (None, State.QUEUED),
        (State.QUEUED, State.RUNNING),
        (State.QUEUED, State.CANCELLED),
        (State.QUEUED, State.EXPIRED),
        (State.RUNNING, State.SUCCEEDED),
        (State.RUNNING, State.FAILED),
        (State.RUNNING, State.CANCELLED),
        (State.RUNNING, State.WAITING),
        (State.RUNNING, State.QUEUED),
        (State.WAITING, State.QUEUED),
        (State.WAITING, State.CANCELLED),
        (State.WAITING, State.EXPIRED),
    }
)
"""Every change of state that may happen; anything else is a bug."""


class Lane(IntEnum):
    """What kind of capacity a job may use."""

    FIRM = 0
    """Needs capacity that stays: on-demand consumers only."""

    TOLERANT = 1
    """May run on spot capacity."""

    @property
    def word(self) -> str:
        return self.name.lower()


BUCKET_MS = 60_000
"""Width of a deadline bucket of the backlog, in milliseconds of absolute time."""


def deadline_bucket(deadline_ms: int | None) -> int:
    """Bucket of a deadline: 0 without one, else the whole minutes since the epoch by which it falls due."""
    return 0 if deadline_ms is None else -(-deadline_ms // BUCKET_MS)


# --- ids --------------------------------------------------------------------------------------------------------------

ID_STRIDE = 1024
"""Distance between the ids that one process hands out in a row; the low bits name the process (its *node*)."""

ID_EPOCH_MS = 1_735_689_600_000
"""2025-01-01T00:00:00Z, in Unix milliseconds: the zero of the time part of an id."""


class IdSource:
    """Hands out ids that are unique across processes, roughly ordered by time, and consecutive within one call.

    An id is `(milliseconds since ID_EPOCH_MS << 22) | (sequence << 10) | node`, positive and below 2**63. `node` is
    given by the database, once per process start. Time may run ahead of the clock under load, and never runs back.
    Not thread-safe: owned by the thread that submits.
    """

    def __init__(self, node: int) -> None:
        self._node = node % ID_STRIDE
        self._next = 0

    def take(self, count: int, *, now_ms: int) -> range:
        """Return `count` fresh ids, ascending, as a range with step ID_STRIDE."""
        first = max(((now_ms - ID_EPOCH_MS) << 22) | self._node, self._next)
        self._next = first + count * ID_STRIDE
        return range(first, self._next, ID_STRIDE)


def format_id(number: int) -> str:
    """Render an id for people and URLs: 16 hexadecimal digits, so that text order is number order."""
    return f"{number:016x}"


def parse_id(text: str) -> int | None:
    """Read an id as rendered by `format_id`; None where the text is not one."""
    if len(text) != 16:
        return None
    try:
        number = int(text, 16)
    except ValueError:
        return None
    return number if number < 1 << 63 and text == format_id(number) else None


def redrive_key(job_id: int) -> str:
    """The idempotency key of a dead job's one successor. No caller can send it: theirs are ASCII."""
    return f"↻ {format_id(job_id)}"


# --- records ----------------------------------------------------------------------------------------------------------


class PayloadReference(msgspec.Struct, frozen=True, kw_only=True):
    """An input names a payload, once or more."""

    index: int
    """Of the input, within its call."""
    payload_id: int
    pointer: str
    """JSON pointer to the input, for whoever is told that there is no such payload."""


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """Validated jobs that share everything but their input: one call of the API, or one chunk of a bulk.

    All or nothing: either every input becomes a job or none does.
    """

    tenant_id: int
    queue_id: int
    inputs: Sequence[bytes]
    """One JSON document per job."""
    costs: Sequence[int]
    """Estimated cost per job, in the model's unit; as long as `inputs`."""
    priority: int = 5
    deadline_ms: int | None = None
    """Absolute, in the database's Unix milliseconds."""
    start_by_ms: int | None = None
    """Latest safe start; None without a deadline."""
    max_failures: int = 3
    """The job fails for good at this many failures."""
    params: bytes | None = None
    """One JSON object, the same for every job."""
    labels: Sequence[str] = ()
    custom_ids: Sequence[str | None] | None = None
    created_by: str | None = None
    """Public prefix of the API key that submitted it."""
    trace_context: str | None = None
    affinity_key: str | None = None
    max_cost: int | None = None
    input_digests: Sequence[bytes] | None = None
    redrive_of: int | None = None
    """The dead job that this one takes the place of; `idempotency_key` is then its `redrive_key`."""
    payloads: Sequence[PayloadReference] = ()
    """What the inputs refer to, each pair of input and payload once: kept as long as these jobs."""
    webhook: str | None = None
    """The URL that hears of the end of each job."""
    bulk_id: int | None = None
    idempotency_key: str | None = None
    """Unique per tenant, or, within a bulk, per bulk."""
    idempotency_digest: bytes | None = None
    """Hash of the canonical body, with the model's name as written."""
    ticketed: bool = False
    """The submitter publishes the tickets itself right after the commit (inside the leader's allowance)."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What a committed submission became."""

    ids: range | Sequence[int]
    created_at_ms: int
    replayed: bool = False
    """True where an earlier call with the same idempotency key had already made these jobs."""


class ClaimedJob(msgspec.Struct, frozen=True, gc=False):
    """A job as its consumer holds it. Positional on purpose: built once per job from a database row."""

    id: int
    attempt: int
    """Fences every later write together with the owner."""
    queue_id: int
    tenant_id: int
    priority: int
    cost_estimate: int
    deadline_ms: int | None
    bulk_id: int | None
    failures: int
    max_failures: int
    suspect: bool
    created_at_ms: int
    input: bytes
    params: bytes | None
    is_followed: bool = False
    """Other jobs may wait for what it computes: see `JobStore.share`."""


class ErrorInfo(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Why a job failed, as stored and shown."""

    code: str
    message: str
    retryable: bool = False


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What became of one claimed job; written in bulk by `JobStore.finish`."""

    job: ClaimedJob
    state: State
    """SUCCEEDED, FAILED, CANCELLED, or WAITING for a retry."""
    body: bytes | None = None
    """The encoded result of a success, see `batchyard.results`."""
    format: int = 0
    """How `body` is encoded: `batchyard.results.JSON` or `TENSORS`."""
    error: ErrorInfo | None = None
    """Of a failure, and of a retry (the last error seen)."""
    cost: int = 0
    """Exact size, in the model's unit."""
    device_us: int = 0
    """The job's share of its batch's time on the device, in microseconds."""
    retry_in_ms: int = 0
    """Back-off before a WAITING job is due again."""
    computed_by: int | None = None
    """The job whose result this is, where it was served from the cache; 0 for one of another tenant."""


class ResultRow(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One finished job of a bulk, in the order of completion. Travels as an array, see `batchyard.results`."""

    seq: int
    id: int
    index: int
    state: State
    custom_id: str | None
    format: int | None
    body: bytes | None


def runs(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Cut a sequence of ids into pieces of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
