"""What a job store does, whatever the database: the protocol that SQLite and Postgres implement, with its records.

Every method is synchronous, is one transaction unless it says otherwise, and may be called from any thread. Database
outages surface as `Unavailable`. Rules that every implementation keeps:

- Every write by a consumer repeats `state = running AND attempt = mine AND owner = me`; other rows are left alone.
- Every change of state moves its counts in `backlog` (and `bulk_counts`, for a bulk's jobs) in the same transaction.
- Every job of a bulk that becomes terminal is named by a `flushes` row of the same transaction.
- Every job that becomes terminal, and every bulk that is found finished, is put into the outbox of webhooks in the same
  transaction, for each enabled endpoint of its tenant that hears of it: see `batchyard.store.outbox`.
- Where several rows are locked, they are locked in ascending id order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from batchyard.jobs import Accepted, ClaimedJob, Outcome, ResultRow, Submission
from batchyard.sharing import Division
from batchyard.store.records import (
    ApiKey,
    BacklogRow,
    BulkConfig,
    BulkView,
    Candidate,
    ConsumerInfo,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    DueDelivery,
    JobFilter,
    JobInput,
    JobPage,
    JobView,
    Lease,
    LeaseLost,
    Leftover,
    Line,
    ModelConfig,
    ModelVersion,
    PayloadInfo,
    PoolDecision,
    PoolOverride,
    Renewal,
    SpendRow,
    Tenant,
    TenantLimits,
    UsageRow,
    Webhook,
)

__all__ = [
    "ApiKey",
    "BacklogRow",
    "BulkConfig",
    "BulkView",
    "Candidate",
    "ConsumerInfo",
    "Delivery",
    "DeliveryFilter",
    "DeliveryState",
    "DueDelivery",
    "JobFilter",
    "JobInput",
    "JobPage",
    "JobStore",
    "JobView",
    "Lease",
    "LeaseLost",
    "Leftover",
    "Line",
    "ModelConfig",
    "ModelVersion",
    "PayloadInfo",
    "PoolDecision",
    "PoolOverride",
    "Renewal",
    "ResultRow",
    "SpendRow",
    "Tenant",
    "TenantLimits",
    "UsageRow",
    "Webhook",
]


class JobStore(Protocol):
    """The truth about every job."""

    # --- life ---

    def close(self) -> None: ...

    def ping(self) -> None:
        """Touch the database; raises Unavailable where it is away."""

    def probe(self) -> str:
        """Commit something small, and tell the version of the schema; Unavailable where that cannot be done."""

    def now_ms(self) -> int:
        """The database's clock, estimated from a recent reading and the local monotonic clock; no round trip."""

    def take_node(self) -> int:
        """A number for an `IdSource`, different at every call."""

    def durability(self) -> str:
        """What a commit survives, for people: "sqlite wal synchronous=FULL", "postgres synchronous_commit=on"."""

    # --- submission (owned by batchyard.submission) ---

    def submit(self, submissions: Sequence[Submission]) -> list[Accepted | Exception]:
        """Commit many submissions in one transaction and say, in order, what each became.

        A submission that cannot be taken (unknown or sealed bulk: NotFound / Conflict; another body under its key:
        IdempotencyConflict; a payload that does not exist or is another tenant's: InvalidInput) yields its error in its
        place and does not harm the others. A known key with the same digest yields the jobs it made before, with
        `replayed`, also after its bulk was sealed. Two submissions with the same new key in one call: the second is a
        replay of the first. Ids come from an IdSource owned by the store.
        """

    def create_bulk(self, config: BulkConfig) -> BulkView:
        """Create a bulk, or return the one that this idempotency key made; IdempotencyConflict on another digest."""

    def seal_bulk(self, *, tenant_id: int, bulk_id: int) -> BulkView:
        """No further chunks. Sealing again changes nothing. NotFound."""

    # --- claims (owned by consumers) ---

    def claim(self, tickets: Sequence[tuple[int, Sequence[int]]], *, owner: int) -> list[ClaimedJob]:
        """Take the jobs of several tickets, each `(queue_id, ids)`, in one transaction; ascending ids per ticket.

        Only rows still queued in that queue, not past their deadline, not held, of a queue not paused, and only while
        the owner's lease lives. Raises `attempt`; sets owner and started_at. Ids that do not match are simply absent.
        """

    def share(self, held: Sequence[ClaimedJob], keys: Sequence[bytes], *, owner: int, keep_ms: int) -> Division:
        """Of held jobs that compute what `keys` say, one for each, let one compute what several do: see
        `batchyard.sharing`. Those of which a job has succeeded within `keep_ms` are served with its result, and stay
        held. Those of which another job runs, or comes before them here, become WAITING, uncharged: they are due once
        that job runs no more, at the latest with the lease that it runs under. Of others the first computes from now
        on. Where all are served this is one read.
        """

    def finish(self, outcomes: Sequence[Outcome], *, owner: int) -> list[int]:
        """Write outcomes of held jobs in one fenced transaction; return the ids that were written, in input order.

        SUCCEEDED and FAILED insert the result row; a job with cancel_requested becomes CANCELLED whatever the outcome
        says; WAITING adds one to `failures`, sets not_before and keeps its error as the result row until a later one
        takes its place; FAILED adds one too. Writes usage, bulk counts and flushes. Retrying after an ambiguous commit
        is safe: a job already finished by this owner at this attempt counts as written. A result already terminal
        otherwise is never touched. Jobs that wait for one of these (see `share`) are due.
        """

    def release(
        self, jobs: Sequence[ClaimedJob], *, owner: int, preempted: bool = False, suspect: bool = False
    ) -> list[int]:
        """Hand held jobs back to their queue, uncharged but for the counter named; jobs with cancel_requested become
        CANCELLED. `suspect`: one of them may be to blame for the end of this process (see `batchyard.blame`); from now
        on each runs alone. Returns the ids that are queued again."""

    def register_consumer(
        self, *, pool: str, host: str, pid: int, device: str, capacity: str, queue_ids: Sequence[int], lease_ms: int
    ) -> int:
        """A fresh random owner id (63 bits) with a live lease, in state "starting"."""

    def renew(
        self,
        owner: int,
        *,
        lease_ms: int,
        state: str,
        stats: Mapping[str, Any],
        zone: str = "",
        is_preempted: bool = False,
    ) -> Renewal:
        """Prolong the lease from the database's now and store what the consumer reports; O(jobs it holds). When it
        first told that it is preempted, and the zone that it told last, stay."""

    def deregister(self, owner: int) -> None:
        """Leave in order: state "gone". What it still owns goes back to its queues, as release does; of a preempted
        consumer, counted as preempted."""

    def note_preempted(self, owner: int) -> None:
        """A consumer's machine is taken back, as whoever gave it notice says; as `renew` with `is_preempted`."""

    def note_solo(self, owner: int, *, job_id: int | None) -> None:
        """A consumer is about to run this suspect and nothing beside it, or is through with it (None): should nobody be
        there to tell of its death, that is what it died of."""

    def bury(self, owner: int, *, executing: Sequence[int], cause: str | None = None) -> bool:
        """A consumer's process is known to have ended while it executed these jobs; `cause` is for people. Marks it
        dead at once: `reap` does the rest. False, and nothing is changed, where it had left or was reaped before."""

    def report_progress(self, notes: Sequence[tuple[ClaimedJob, bytes]], *, owner: int) -> None:
        """What jobs that this consumer runs have come to so far, as JSON; those that are no longer its own at that
        attempt are passed over."""

    def forget_progress(self, *, limit: int) -> int:
        """Delete what was told of jobs that do not run any more; how many."""

    def forget_computations(self, *, limit: int) -> int:
        """Look through the next `limit` computations, by key and in rounds, and delete those from which nobody can be
        served any more; how many."""

    def disown(self) -> None:
        """Of a database that was put back from a backup: nobody registered in it may write any more, what they held is
        queued again, uncharged, and nobody leads. Several transactions; repeating it does no harm."""

    def report_version(
        self, version_id: int, *, digest: str, input_schema: Mapping[str, Any], cost_unit: str, load_seconds: float
    ) -> None:
        """Publish what loading a version found. Conflict where it has another digest already and has been used."""

    def report_load_error(self, version_id: int, *, message: str) -> None: ...

    def report_speed(self, version_id: int, *, units_per_byte: float, seconds_per_unit: float) -> None: ...

    # --- order (read by the dispatcher and by the idle claim) ---

    def head(
        self, queue_id: int, *, after: Mapping[tuple[int, int], int], jobs: int, urgent_before_ms: int
    ) -> list[Line]:
        """The front of every line (tenant, priority) of a queue that has queued jobs: candidates with id above
        `after[tenant, priority]` (default 0), and those whose start_by is before `urgent_before_ms`.

        Of each line as many as it is likely to take to choose the next `jobs` of the queue, see `forecast.front_jobs`.
        Held jobs (negative priority) are not shown; a paused queue has no lines. O(lines + jobs).
        """

    def stragglers(self, queue_id: int, *, below: Mapping[tuple[int, int], int], limit: int) -> list[int]:
        """Queued ids of a queue that stand below `below[tenant, priority]`, oldest first, at most `limit` per line:
        what was ticketed once and is still not claimed, or came back."""

    # --- the dispatcher's chores (leader only; each bounded by `limit`, returning what it moved) ---

    def lead(self, name: str, *, holder: int, lease_ms: int) -> int:
        """Take or keep a named lease: its term, counted up with every change of holder; 0 where another has it."""

    def resign(self, name: str, *, holder: int) -> None: ...

    def reap(self, *, limit: int) -> dict[int, list[int]]:
        """Mark consumers whose lease is over dead, and requeue (or cancel, where asked) what dead ones own, charged as
        `batchyard.blame` says: a job that has ended too many is FAILED with the code "crash_loop". Returns queue id →
        job ids queued again."""

    def promote_due(self, *, limit: int) -> dict[int, list[int]]:
        """Waiting jobs whose back-off is over become queued. Returns queue id → ids."""

    def expire_due(self, *, limit: int) -> list[int]:
        """Queued and waiting jobs past their deadline become expired (or cancelled, where asked)."""

    def move_to_firm(
        self, queues: Mapping[int, int], *, preemptions: int, start_before_ms: int, limit: int
    ) -> dict[int, list[int]]:
        """Move queued and waiting jobs from tolerant queues to firm ones, given as tolerant → firm queue id: those
        preempted so often, and queued ones whose latest safe start is before `start_before_ms`; not held ones.
        Returns firm queue id → ids that are queued there and may be ticketed."""

    def sweep_bulks(self, *, limit: int) -> int:
        """Carry on holding, freeing or cancelling the jobs of bulks that were paused, resumed or cancelled."""

    def fold(self, *, limit: int) -> int:
        """Fold deltas into their sums and number new flushes (Postgres); drop empty sums. Returns rows touched."""

    def retire(self, *, finished_before_ms: int, limit: int, tombstone_ms: int) -> int:
        """Delete up to `limit` terminal jobs that finished before then, about the oldest first, with inputs, results
        and labels, leaving tombstones; then bulks and idempotency keys whose jobs are all gone, and tombstones older
        than `tombstone_ms`. Payloads that only these jobs referred to are left to `sweep_payloads`. Returns jobs
        deleted. A round over all jobs takes several calls; some may delete none."""

    def stored_bytes(self) -> int:
        """Bytes of the inputs and results of all jobs now kept, and of the payloads that these refer to, each once.
        From the usage sums: O(hours)."""

    def stored_bytes_by_tenant(self) -> dict[int, int]:
        """The same by tenant, with the payloads that no job refers to. O(hours) and O(such payloads)."""

    # --- models, queues, tenants, keys ---

    def sync_models(self, configs: Sequence[ModelConfig]) -> list[ModelVersion]:
        """Make the configuration's versions exist with their queues; others become inactive and keep their jobs."""

    def models(self) -> list[ModelVersion]: ...

    def set_queue_paused(self, queue_id: int, *, paused: bool) -> None: ...

    def tenants(self) -> list[Tenant]: ...

    def create_tenant(self, name: str, *, weight: float = 1.0) -> Tenant:
        """Conflict where the name is taken. Tenant 1, "default", always exists."""

    def set_tenant_limits(self, name: str, limits: TenantLimits) -> Tenant:
        """Replace all of a tenant's own limits; NotFound. API processes follow within a second or two."""

    def create_key(
        self, *, prefix: str, tenant_id: int, name: str, digest: bytes, scopes: Sequence[str], expires_at_ms: int | None
    ) -> ApiKey: ...

    def keys(self) -> list[ApiKey]: ...

    def find_key(self, prefix: str) -> tuple[ApiKey, bytes] | None:
        """The key with its digest, for the caller to compare in constant time."""

    def rotate_key(
        self, prefix: str, *, successor: str, digest: bytes, overlap_ms: int, life_ms: int | None = None
    ) -> ApiKey:
        """A key with the prefix `successor` takes the place of this one: same tenant, name and scopes. Both are valid
        for `overlap_ms`, then the old one has expired; where it would have sooner, it does. The new one lives for
        `life_ms`, or for as long as the old one was meant to. NotFound; Conflict where the old one is no longer valid,
        or was rotated before."""

    def revoke_key(self, prefix: str) -> ApiKey:
        """NotFound. Revoking again changes nothing."""

    # --- readers ---

    def get_jobs(self, ids: Sequence[int], *, tenant_id: int, results: bool = True) -> list[JobView]:
        """Those of the ids that exist for this tenant, in no particular order; one query."""

    def get_inputs(self, ids: Sequence[int], *, tenant_id: int, max_bytes: int) -> list[JobInput]:
        """What those of the jobs were given that exist for this tenant, in the order of the ids; as many of the first
        as fit into `max_bytes`, and at least one."""

    def finished_among(self, ids: Sequence[int]) -> list[int]:
        """Which of these jobs are terminal (or gone); one light query, for waiters."""

    def retired_among(self, ids: Sequence[int], *, tenant_id: int) -> list[int]:
        """Which of these ids have a tombstone of this tenant."""

    def list_jobs(self, filter: JobFilter) -> JobPage: ...  # noqa: A002

    def position(self, job_id: int, *, limit: int = 1000) -> int | None:
        """How many queued jobs of its queue go before it: those of its own line counted up to `limit`, the rest as
        `batchyard.forecast` estimates them from the backlog. None where it is not queued, or held. O(lines + limit)."""

    def cancel(self, job_id: int, *, tenant_id: int) -> JobView:
        """Queued and waiting jobs become cancelled; a running one is flagged; a terminal one stays. NotFound."""

    def amend(
        self, job_id: int, *, tenant_id: int, priority: int | None, deadline_ms: int | None, start_by_ms: int | None
    ) -> JobView:
        """Change priority and / or deadline of a queued job; Conflict in any other state. NotFound."""

    def forget(self, job_id: int, *, tenant_id: int) -> None:
        """Delete a terminal job with all that belongs to it, such as payloads that no other job refers to, leaving a
        tombstone. Conflict until then. NotFound."""

    def get_bulk(self, bulk_id: int, *, tenant_id: int) -> BulkView:
        """NotFound, or Gone."""

    def list_bulks(self, *, tenant_id: int, before_id: int | None = None, limit: int = 100) -> list[BulkView]: ...

    def cancel_bulk(self, bulk_id: int, *, tenant_id: int) -> BulkView:
        """Ask for the cancellation of all its jobs, and seal it; `sweep_bulks` carries it out."""

    def pause_bulk(self, bulk_id: int, *, tenant_id: int, paused: bool) -> BulkView:
        """Hold back or free its queued jobs; no claim succeeds once a pause returned; `sweep_bulks` moves the rows."""

    def bulk_results(self, bulk_id: int, *, after_seq: int, limit: int) -> list[ResultRow]:
        """Finished jobs of a bulk in commit order, from flushes with seq above `after_seq`; whole flushes, so that the
        cursor can name the last seq; stops once at least `limit` rows are gathered. Retired jobs are left out."""

    def has_unnumbered(self, bulk_id: int) -> bool:
        """Whether flushes of this bulk are committed but not numbered yet (Postgres): not in `bulk_results`."""

    def backlog(self, *, queue_ids: Sequence[int] | None = None) -> list[BacklogRow]:
        """Sums plus unfolded deltas, empty rows left out. O(queues), never O(jobs)."""

    def finished_jobs(self) -> dict[int, int]:
        """Queue id → jobs that ever succeeded or failed there, kept or retired meanwhile: it never falls. O(queues)."""

    def arrivals(self) -> dict[int, tuple[int, int]]:
        """Queue id → jobs that were ever submitted there, and their estimated cost, deleted ones included; what moved
        to another queue counts there. O(queues)."""

    def oldest_queued_ms(self) -> dict[int, int]:
        """Queue id → created_at of its oldest queued job."""

    def usage(self, *, since_hour: int = 0) -> list[UsageRow]: ...

    def consumers(self) -> list[ConsumerInfo]:
        """Those not gone, and those that died or left within the last hour."""

    # --- pools (decided by scalers) ---

    def report_decision(self, *made: PoolDecision, lease: Lease | None = None) -> None:
        """Keep each in the place of its pool's last one. LeaseLost where the lease is another's by now: a leader that
        was stopped in the middle of its round, and goes on after a longer time, changes nothing."""

    def decisions(self) -> list[PoolDecision]:
        """The last one of every pool that a scaler has ever decided about, by name."""

    def pin_pool(self, pool: str, *, replicas: int | None) -> None:
        """Fix the number of a pool's replicas by hand; None: let the scaler decide again."""

    def set_pool_paused(self, pool: str, *, paused: bool) -> None: ...

    def overrides(self) -> dict[str, PoolOverride]:
        """By pool; those that nobody ever touched are left out."""

    def record_signals(
        self, *, spent: Sequence[SpendRow], learned_values: Mapping[str, Any], lease: Lease | None = None
    ) -> None:
        """Add to what was spent, and keep each JSON value in the place of the last one of its name; one transaction.
        LeaseLost as above: what another leader has counted is not counted again."""

    def spent(self, *, since_hour: int) -> list[SpendRow]:
        """By pool and hour, ascending."""

    def learned(self, *names: str) -> dict[str, Any]:
        """What scalers noted, by name: all of it, or what is named and exists."""

    # --- payloads ---

    def expect_payload(self, payload_id: int, *, location: str) -> None:
        """Note where an upload is about to write, so that what it leaves behind where it breaks off is deleted, a day
        later."""

    def add_payload(self, payload: PayloadInfo) -> None:
        """Make a payload known that `expect_payload` announced and whose bytes are safe: from now on jobs may refer
        to it. Unavailable where it was given up meanwhile; after that it is not known whether the payload exists, so
        its bytes must stay."""

    def get_payloads(self, ids: Sequence[int]) -> list[PayloadInfo]:
        """Those of the ids that exist. A payload exists at least as long as any job whose submission referred to it,
        and its bytes are there as long as it exists."""

    def sweep_payloads(self, *, deleted: Sequence[int], uploaded_before_ms: int, limit: int) -> list[Leftover]:
        """One step of what the leader does about payloads: forget the leftovers `deleted`, whose bytes are gone for
        good; give up at most `limit` payloads that were uploaded before then and that no job refers to; and return at
        most `limit` leftovers whose bytes are to be deleted now. Each of these is returned once more some minutes
        later, to whoever asks then, until it was among `deleted`."""

    # --- webhooks ---

    def create_webhook(self, *, tenant_id: int, url: str, events: Sequence[str], description: str) -> Webhook:
        """A new endpoint with a secret of its own. It hears of jobs and bulks that end from now on. Conflict where the
        tenant has as many as it may."""

    def webhooks(self, *, tenant_id: int | None = None) -> list[Webhook]:
        """Of one tenant, or of all, by age."""

    def rotate_webhook(self, webhook_id: int, *, tenant_id: int, overlap_ms: int) -> Webhook:
        """Give it a new secret; the last one signs too for `overlap_ms`. NotFound."""

    def enable_webhook(self, webhook_id: int, *, tenant_id: int) -> Webhook:
        """NotFound. What is pending for it is due as before."""

    def disable_webhook(self, webhook_id: int, *, tenant_id: int, because: str) -> Webhook:
        """It hears of nothing more, and what is pending for it waits until it is enabled. NotFound."""

    def delete_webhook(self, webhook_id: int, *, tenant_id: int) -> None:
        """With its deliveries, in several transactions. NotFound; Conflict for the one of the URLs that jobs and bulks
        name."""

    def finish_bulks(self, *, limit: int) -> int:
        """The leader's chore: note which of the next `limit` sealed bulks have come to their end, each once, and put
        these into the outbox. Returns how many had."""

    def take_deliveries(
        self, *, limit: int, of_one: int, underway: Mapping[int, int], lease_ms: int
    ) -> list[DueDelivery]:
        """Begin an attempt at deliveries that are due, for each endpoint the longest due first and no more than
        `of_one` at a time, those `underway` (endpoint → number) counted: one that is slow holds up no other. An attempt
        whose end nobody tells within `lease_ms` is made again."""

    def end_delivery(
        self,
        delivery: Delivery,
        *,
        status: int | None,
        error: str | None,
        retry_in_ms: int | None = None,
        disables: bool = False,
    ) -> bool:
        """Tell how an attempt ended: without an error it is delivered, else tried again after `retry_in_ms`, or dead.
        `disables`: the receiver wants nothing any more at this endpoint. False, and nothing is changed, where another
        attempt has begun, or the job or endpoint is gone."""

    def deliveries(self, wanted: DeliveryFilter, *, limit: int) -> list[Delivery]:
        """The newest first."""

    def replay_deliveries(self, wanted: DeliveryFilter, *, limit: int) -> list[int]:
        """Make up to `limit` of them pending and due at once, with all attempts before them, whatever became of them.
        Returns their ids, the newest first."""

    def oldest_due_delivery_ms(self) -> int | None:
        """Since when a delivery to an enabled endpoint has been due that nobody has begun; O(endpoints)."""

    # --- for tests and doctors ---

    def recount(self) -> list[BacklogRow]:
        """The backlog by GROUP BY over the jobs: what `backlog()` must equal. O(jobs)."""
