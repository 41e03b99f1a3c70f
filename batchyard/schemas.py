"""Every request and answer of the HTTP API as a msgspec struct, shared by the API, the SDK and the OpenAPI document.

Requests refuse unknown members. Inputs and results are `msgspec.Raw`: JSON text that passes through undecoded. Ids are
16 hexadecimal digits (`batchyard.jobs.format_id`), times RFC 3339 in UTC, durations seconds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from batchyard.destinations import MAX_URL_LENGTH
from batchyard.jobs import ErrorInfo

MAX_LOOKUP_IDS = 1000
"""Of one POST /v1/jobs/lookup."""

MAX_REDRIVE = 1000
"""Jobs of one POST /v1/jobs/redrive."""

MAX_WAIT_SECONDS = 60.0
"""The longest `wait` of a long poll; a larger one is cut to it."""

MEDIA_JSON = "application/json"
MEDIA_NDJSON = "application/x-ndjson"

Priority = Annotated[int, Meta(ge=0, le=9, description="9 goes first; 5 where not given")]
Seconds = Annotated[float, Meta(gt=0, le=366 * 24 * 3600)]
MaxFailures = Annotated[int, Meta(ge=1, le=100, description="The job fails for good at this many failures")]
Label = Annotated[str, Meta(min_length=1, max_length=128)]
Labels = Annotated[list[Label], Meta(max_length=32)]
CustomId = Annotated[str, Meta(min_length=1, max_length=256)]
Wait = Annotated[float, Meta(ge=0)]
KeyLife = Annotated[float, Meta(gt=0, le=100 * 366 * 24 * 3600)]
LaneWord = Literal["firm", "tolerant"]
StateWord = Literal["queued", "running", "waiting", "succeeded", "failed", "cancelled", "expired"]
DeadWord = Literal["failed", "expired", "cancelled"]
WebhookUrl = Annotated[str, Meta(min_length=1, max_length=MAX_URL_LENGTH, description="https://HOST/PATH")]
EventWord = Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired", "bulk.finished"]
ScopeWord = Literal["jobs", "admin", "metrics", "scale", "webhooks"]
DeliveryStateWord = Literal["pending", "delivered", "dead"]
Moment = Annotated[datetime, Meta(tz=True)]
"""RFC 3339, with an offset."""
ID_PATTERN = "^[0-7][0-9a-f]{15}$"
Rules = dict[str, Any]
"""JSON Schema of what members must hold together; `rules` of a struct say it to readers of the document alone."""


# --- jobs: requests -------------------------------------------------------------------------------------------------


class JobsRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/models/{model}/jobs. Exactly one of `input` and `inputs`; all or nothing."""

    input: Raw | UnsetType = UNSET
    """One input: any JSON that fits the model's schema."""
    inputs: list[Raw] | UnsetType = UNSET
    """Several inputs, one job each."""
    params: dict[str, Any] | None = None
    """Handed to the model's `preprocess`, the same for all jobs of the call."""
    priority: Priority = 5
    tolerant: bool | None = None
    """True: may run on spot capacity; false: may not. Where not given, the model's own default."""
    deadline_seconds: Seconds | None = None
    """When the result is wanted, from now. A job not started by then expires."""
    max_failures: MaxFailures | None = None
    labels: Labels = []
    custom_id: CustomId | None = None
    """Your own name for the job, returned with it; with `input` only."""
    custom_ids: list[CustomId | None] | None = None
    """One per input; with `inputs` only."""
    webhook: WebhookUrl | None = None
    """Hears of the end of each job; its secret is that of your endpoint without a URL."""

    rules: ClassVar[Rules] = {
        "oneOf": [
            {"required": ["input"], "properties": {"inputs": False, "custom_ids": {"type": "null"}}},
            {
                "required": ["inputs"],
                "properties": {"input": False, "inputs": {"minItems": 1}, "custom_id": {"type": "null"}},
            },
        ]
    }


class LookupRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/jobs/lookup: many jobs at once."""

    ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_LOOKUP_IDS)]
    wait: Wait = 0.0
    """Seconds to wait for `until`; then the jobs are answered as they stand."""
    until: Literal["any", "all"] = "all"
    """Return once any of the jobs is finished, or all are."""
    results: bool = True
    """False: states alone."""


class JobPatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """PATCH /v1/jobs/{id}, of a queued job."""

    priority: Priority | None = None
    deadline_seconds: Seconds | None = None
    """From now."""

    rules: ClassVar[Rules] = {
        "anyOf": [
            {"required": ["priority"], "properties": {"priority": {"type": "integer"}}},
            {"required": ["deadline_seconds"], "properties": {"deadline_seconds": {"type": "number"}}},
        ]
    }


class RedriveOne(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/jobs/{id}/redrive."""

    to: str | None = None
    """Another `model@version`, or a bare name; the old job's own version where not given."""


class DeadJobs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which jobs that ended without a result; all that is given must hold."""

    state: DeadWord = "failed"
    model: str | None = None
    """`model` for all its versions, or `model@version`."""
    error: str | None = None
    """The code of their error: "crash_loop"."""
    label: str | None = None
    finished_from: Moment | None = None
    finished_before: Moment | None = None


class RedriveRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/jobs/redrive. Exactly one of `ids` and `where`."""

    ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_REDRIVE)] | None = None
    where: DeadJobs | None = None
    to: str | None = None
    """Another `model@version`, or a bare name; each job's own version where not given."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""
    limit: Annotated[int, Meta(ge=1, le=MAX_REDRIVE)] = 100
    """With `where`: how many jobs in this step."""
    after: str | None = None
    """With `where`: the `next` of the step before."""

    rules: ClassVar[Rules] = {
        "oneOf": [
            {"required": ["ids"], "properties": {"ids": {"type": "array"}, "where": {"type": "null"}}},
            {"required": ["where"], "properties": {"where": {"type": "object"}, "ids": {"type": "null"}}},
        ],
        "properties": {"after": {"pattern": ID_PATTERN}},
    }


# --- jobs: answers --------------------------------------------------------------------------------------------------


class WaitReason(msgspec.Struct, kw_only=True, frozen=True):
    """Why a job is not running yet."""

    code: Literal[
        "behind_jobs",
        "model_loading",
        "model_failed",
        "no_capacity",
        "no_consumer",
        "retry_backoff",
        "same_computation",
        "paused",
        "over_budget",
    ]
    message: str
    """For people: "behind 12 jobs"."""


class Job(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A job as its owner sees it. Members without a value are left out."""

    id: str
    model: str
    """`model@version`: what an alias was resolved to."""
    lane: LaneWord
    state: StateWord
    created_at: str
    priority: int = 5
    started_at: str | None = None
    """Of the last claim."""
    finished_at: str | None = None
    deadline: str | None = None
    late: bool = False
    """Succeeded, after its deadline."""
    cancel_requested: bool = False
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    preemptions: int = 0
    max_failures: int = 0
    bulk_id: str | None = None
    index: int | None = None
    """Place in its bulk, or in its call."""
    custom_id: str | None = None
    labels: list[str] = []
    redrive_of: str | None = None
    """The dead job that this one takes the place of."""
    redriven_as: str | None = None
    """Of a dead job: the one that took its place."""
    cost_estimate: int = 0
    cost: int | None = None
    """Exact, in the model's unit."""
    device_seconds: float | None = None
    cached: bool = False
    """Served with what another job had computed."""
    computed_by: str | None = None
    """That job, where it is of the same tenant."""
    retry_at: str | None = None
    """When a waiting job is due again."""
    position: int | None = None
    """Queued jobs that go before it: exact to 1,000 where it waits beside none of other tenants or priorities, else as
    priorities and weights let them go, to a few turns."""
    eta_seconds: float | None = None
    """Until it is finished, as far as its queue's speed is known."""
    waits_because: WaitReason | None = None
    error: ErrorInfo | None = None
    """Of a failure; of a waiting job, the last one."""
    partial: Raw | UnsetType = UNSET
    """Of a running job: what its model has made so far, where it tells; no part of it is promised."""
    result: Raw | UnsetType = UNSET
    """Of a succeeded job. Always the last member."""


class SubmittedJob(msgspec.Struct, kw_only=True, omit_defaults=True):
    """202: one job, committed. A replay under a known idempotency key answers with the job as it stands."""

    id: str
    model: str
    lane: LaneWord
    state: StateWord
    created_at: str
    replayed: bool = False


class SubmittedJobs(msgspec.Struct, kw_only=True, omit_defaults=True):
    """202: several jobs, committed; their ids in the order of the inputs."""

    model: str
    lane: LaneWord
    created_at: str
    ids: list[str]
    replayed: bool = False


class JobList(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A page of GET /v1/jobs, newest first. A page may be short, or empty, and still have a next one."""

    jobs: list[Job]
    next: str | None = None
    """Give it as `after` for the next page; absent on the last."""


class Redriven(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What redriving one job came to."""

    id: str
    """Of the dead job."""
    died_of: ErrorInfo | None = None
    """Its error, where it failed."""
    redriven_as: str | None = None
    """The job that takes its place; absent of a dry run."""
    model: str | None = None
    """That one's `model@version`."""
    already: bool = False
    """It had been redriven before: a job is redriven once, and then what took its place may be."""
    refused: ErrorInfo | None = None
    """Why it was not redriven."""


class RedriveAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One step. A step with `where` may be empty and still have a next one."""

    jobs: list[Redriven]
    """In the order of `ids`, or newest first."""
    count: int
    """How many new jobs were made, or of a dry run would be."""
    next: str | None = None
    """Give it as `after` for the next step; absent on the last."""


class LookupAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The jobs in the order asked for, each once."""

    jobs: list[Job]
    missing: list[str] = []
    """Ids that are no job of this tenant."""
    retired: list[str] = []
    """Ids whose results are no longer kept."""


# --- bulks ----------------------------------------------------------------------------------------------------------


class BulkDefaults(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the jobs of a bulk share; stored with it, as submitted."""

    model: str
    params: dict[str, Any] | None = None
    priority: Priority = 5
    tolerant: bool | None = None
    deadline_seconds: Seconds | None = None
    """From the creation of the bulk."""
    max_failures: MaxFailures | None = None
    labels: Labels = []
    validate: bool = True
    """False: an input that does not fit the model's schema fails alone, when it runs, instead of refusing its chunk."""


class BulkRequest(BulkDefaults, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/bulks."""

    chunk_size: Annotated[int, Meta(ge=1)] | None = None
    """The most inputs in one chunk; fixed for the bulk's life. Where not given, the server's limit."""
    webhook: WebhookUrl | None = None
    """Hears when the bulk is finished; its secret is that of your endpoint without a URL."""


class BulkChunk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/bulks/{id}/jobs as JSON: all or nothing."""

    inputs: list[Raw]
    custom_ids: list[CustomId | None] | None = None
    """One per input."""

    rules: ClassVar[Rules] = {"properties": {"inputs": {"minItems": 1}}}


class BulkLine(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a chunk sent as NDJSON (`application/x-ndjson`)."""

    input: Raw
    custom_id: CustomId | None = None


class ChunkAccepted(msgspec.Struct, kw_only=True, omit_defaults=True):
    """202: the chunk's jobs are committed. Indexes go on from the chunks before it."""

    bulk_id: str
    first_id: str
    """Of its first job; the others follow `batchyard.jobs.ID_STRIDE` apart."""
    accepted: int
    created_at: str
    replayed: bool = False


class Bulk(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A bulk and how far it is."""

    id: str
    model: str
    lane: LaneWord
    jobs: int
    """Accepted so far: the index of the next job, and so where a resumed client goes on."""
    chunk_size: int
    created_at: str
    counts: dict[StateWord, int] = {}
    """Jobs by state; states without jobs are left out."""
    cost: int = 0
    """Exact cost of what has succeeded, in the model's unit."""
    sealed_at: str | None = None
    finished: bool = False
    """Sealed, and every job ended."""
    paused: bool = False
    cancel_requested: bool = False
    eta_seconds: float | None = None
    priority: int = 5
    labels: list[str] = []


class BulkList(msgspec.Struct, kw_only=True, omit_defaults=True):
    bulks: list[Bulk]
    next: str | None = None


class ResultLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of GET /v1/bulks/{id}/results as NDJSON: a finished job, in the order of completion.

    The binary form of the same stream is `batchyard.results.Frame`.

    `cursor` lines stand between them: everything before such a line is never sent again when the reader comes back with
    `?after=CURSOR`. `finished` says that the bulk is sealed and that every result has been sent.
    """

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    state: StateWord | UnsetType = UNSET
    custom_id: str | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    """Of a succeeded job."""
    error: ErrorInfo | UnsetType = UNSET
    """Of any other."""
    cursor: str | UnsetType = UNSET
    """Stands alone with `finished`."""
    finished: bool | UnsetType = UNSET


# --- models and pools -----------------------------------------------------------------------------------------------


class Queue(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The jobs of one model version and lane."""

    lane: LaneWord
    queued: int
    waiting: int
    running: int
    paused: bool = False
    backlog_seconds: float | None = None
    """Of one consumer's time; absent until the model's speed is known."""
    oldest_queued_seconds: float | None = None
    eta_seconds: float | None = None
    """Until a job submitted now would be finished."""
    consumers: int = 0
    """Live consumers that serve it."""


class ModelVersion(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One version of a model: what runs."""

    name: str
    """`model@version`."""
    version: str
    weight: float
    """Its share of the bare name's jobs."""
    active: bool
    """Stands in the configuration; an inactive one takes no new jobs by its bare name."""
    runtime: str
    lane: LaneWord
    """The default for its jobs."""
    queues: list[Queue]
    warm: bool
    """Some live consumer has it loaded."""
    pools: list[str] = []
    """Names of the pools that serve it."""
    digest: str | None = None
    input_schema: dict[str, Any] | None = None
    """Absent until a consumer has loaded the version: any JSON is accepted."""
    cost_unit: str = "bytes"
    seconds_per_unit: float | None = None
    load_seconds: float | None = None
    load_error: str | None = None


class Model(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    versions: list[ModelVersion]


class ModelList(msgspec.Struct, kw_only=True, omit_defaults=True):
    models: list[Model]


class Consumer(msgspec.Struct, kw_only=True, omit_defaults=True):
    id: str
    pool: str
    host: str
    pid: int
    device: str
    capacity: str
    state: str
    started_at: str
    models: list[str] = []
    ready_at: str | None = None
    zone: str | None = None
    preempted_at: str | None = None
    """When it heard that its machine is taken back."""
    stats: dict[str, Any] = {}


class Pool(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    capacity: Literal["on_demand", "spot"]
    device: str
    models: list[str]
    min: int
    max: int
    price_per_hour: float | None = None
    """Of one consumer, in dollars; absent where it is not known."""
    consumers: list[Consumer] = []
    decision: PoolScale | None = None
    pinned: int | None = None
    """Replicas that someone fixed by hand."""
    paused: bool = False
    """By hand: no replicas are wanted."""
    spent: Spend | None = None


class PinRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/pools/{pool}/pin."""

    replicas: Annotated[int, Meta(ge=0, le=100_000)]


class Spend(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a pool's consumers took, as far as it is counted: every few seconds, in hours and months of UTC."""

    hours_this_hour: float
    """Of consumers' time."""
    hours_this_month: float
    dollars_this_hour: float | None = None
    """Absent where the pool has no price."""
    dollars_this_month: float | None = None


class PoolScale(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the scaler decided last about a pool, and why."""

    pool: str
    replicas: int
    """Wanted."""
    live: int
    """Starting or ready when it was decided."""
    rule: str = ""
    """What decided, as one word: `deadline`, `hold`, `idle`, `spot`, `budget`, `pinned` and the like."""
    reason: str
    decided_at: str
    age_seconds: float
    stale: bool = False
    """Older than 60 s: no scaler looks after the pool any more, or it does not reach the database."""
    backlog_jobs: int = 0
    backlog_seconds: float | None = None
    """Of one consumer's time; absent while a model's speed is unknown."""
    binding_deadline: str | None = None
    """The deadline that asked for the most replicas, to the minute."""
    unmeetable_jobs: int = 0
    """Due before any replica that is not there yet could help."""
    zones: dict[str, int] = {}
    """Of a spot pool: replicas wanted in each zone."""


class PoolList(msgspec.Struct, kw_only=True, omit_defaults=True):
    pools: list[Pool]


# --- status ---------------------------------------------------------------------------------------------------------


class QueueStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One queue, as `batchyard status` shows it. Counts are over all tenants."""

    model: str
    """`model@version`."""
    lane: LaneWord
    queued: int
    waiting: int
    running: int
    finished: dict[StateWord, int] = {}
    """Jobs that ended and are still kept, by state."""
    paused: bool = False
    consumers: int = 0
    """Ready ones that serve it."""
    starting: int = 0
    jobs_per_second: float | None = None
    """How fast it drained lately; absent before that was seen."""
    backlog_seconds: float | None = None
    """Of one consumer's time."""
    oldest_queued_seconds: float | None = None
    load_error: str | None = None


class Status(msgspec.Struct, kw_only=True, omit_defaults=True):
    """GET /v1/status: the whole system at one moment, for `batchyard status` and `batchyard top`."""

    time: str
    version: str
    """Of batchyard, as this API process runs it."""
    database: str
    """Which, and what a commit survives."""
    broker: Literal["up", "down"]
    role: Literal["leader", "follower", "unknown"]
    """Of this API process's dispatcher."""
    queues: list[QueueStatus]
    pools: list[Pool]


# --- webhooks -------------------------------------------------------------------------------------------------------


class WebhookRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/webhooks."""

    url: WebhookUrl
    events: Annotated[list[EventWord], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["job.succeeded", "job.failed", "job.cancelled", "job.expired", "bulk.finished"]
    )
    """What it hears of, of all jobs and bulks of the tenant; everything where not given."""
    description: Annotated[str, Meta(max_length=256)] = ""


class WebhookRotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/webhooks/{id}/rotate."""

    overlap_seconds: Annotated[float, Meta(ge=0, le=30 * 24 * 3600)] = 24 * 3600.0
    """How long messages are signed with the old secret too."""


class Webhook(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An endpoint, without its secret."""

    id: str
    created_at: str
    events: list[EventWord] = []
    url: str | None = None
    """Absent: the one for the URLs that jobs and bulks name themselves, made with the first of these."""
    description: str = ""
    disabled_at: str | None = None
    disabled_because: str | None = None


class WebhookList(msgspec.Struct, kw_only=True, omit_defaults=True):
    webhooks: list[Webhook]


class WebhookSecrets(msgspec.Struct, kw_only=True, omit_defaults=True):
    """By any of these a message may be verified."""

    secrets: list[str]
    """The newest first; two while one takes the other's place."""


class CreatedWebhook(Webhook, kw_only=True, omit_defaults=True):
    secret: str


class WebhookDelivery(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One message to one endpoint."""

    id: str
    webhook_id: str
    event: EventWord
    url: str
    state: DeliveryStateWord
    created_at: str
    """When its job or bulk ended."""
    job_id: str | None = None
    bulk_id: str | None = None
    attempts: int = 0
    next_attempt_at: str | None = None
    """Of a pending one; passed where its endpoint is disabled."""
    ended_at: str | None = None
    status: int | None = None
    """HTTP's, of the receiver's last answer."""
    error: str | None = None
    """Why the last attempt failed."""


class WebhookDeliveryList(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A page of GET /v1/webhook-deliveries, newest first."""

    deliveries: list[WebhookDelivery]
    next: str | None = None
    """Give it as `after` for the next page; absent on the last."""


class WebhookReplay(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/webhook-deliveries/replay. All that is given must hold; give `delivery_id`, `webhook_id` or a time."""

    delivery_id: str | None = None
    webhook_id: str | None = None
    state: DeliveryStateWord | None = None
    """Where not given: of `delivery_id` whatever it is, else dead ones."""
    ended_from: Moment | None = None
    """By the end of their jobs and bulks."""
    ended_before: Moment | None = None
    after: str | None = None
    """The `next` of the step before."""


class WebhookReplayed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One step."""

    count: int
    """Deliveries that are pending again, with all attempts before them."""
    next: str | None = None
    """Give it as `after` for the next step; absent on the last."""


class JobEnded(msgspec.Struct, kw_only=True):
    """What the receiver of a webhook gets of a job, signed by Standard Webhooks; the same at every attempt."""

    type: Literal["job.succeeded", "job.failed", "job.cancelled", "job.expired"]
    timestamp: str
    """When it ended."""
    data: Job
    """As GET /v1/jobs/{id} shows it, without the result."""


class BulkFinished(msgspec.Struct, kw_only=True):
    """What the receiver of a webhook gets of a bulk, likewise."""

    type: Literal["bulk.finished"]
    timestamp: str
    data: Bulk
    """As GET /v1/bulks/{id} shows it."""


# --- payloads, keys, health, problems -------------------------------------------------------------------------------


class Payload(msgspec.Struct, kw_only=True, omit_defaults=True):
    """POST /v1/payloads: bytes kept apart; name them as `{"$payload": id}` anywhere inside an input."""

    id: str
    content_type: str
    size: int
    sha256: str


class ApiKey(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A key without its secret."""

    prefix: str
    tenant: str
    name: str
    scopes: list[str]
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    replaced_by: str | None = None
    """The key that took its place when it was rotated."""


class CreatedApiKey(ApiKey, kw_only=True, omit_defaults=True):
    """A new key; `key` is shown this once."""

    key: str


class ApiKeyList(msgspec.Struct, kw_only=True, omit_defaults=True):
    keys: list[ApiKey]


class KeyRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/keys."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    """For people: who or what will use it."""
    tenant: str = "default"
    scopes: Annotated[list[Literal["jobs", "admin", "metrics", "scale", "webhooks"]], Meta(min_length=1)] = (
        msgspec.field(default_factory=lambda: ["jobs"])
    )
    expires_in_seconds: KeyLife | None = None
    """Never, where not given."""


class KeyRotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/keys/{prefix}/rotate."""

    overlap_seconds: Annotated[float, Meta(ge=0, le=30 * 24 * 3600)] = 24 * 3600.0
    """How long the old key stays valid beside the new one."""
    expires_in_seconds: KeyLife | None = None
    """Of the new key; where not given, as long as the old one was meant to live."""


class Tenant(msgspec.Struct, kw_only=True, omit_defaults=True):
    name: str
    weight: float = 1.0
    """Its share of a contended queue, beside the others'."""


class TenantRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/tenants."""

    name: Annotated[
        str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$(?!\n)", description="Lower-case letters, digits, . _ -")
    ]
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class TenantList(msgspec.Struct, kw_only=True, omit_defaults=True):
    tenants: list[Tenant]


class Health(msgspec.Struct, kw_only=True, omit_defaults=True):
    """GET /healthz, and /readyz with what it looked at."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str] = {}


class InputFault(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One fault of one input."""

    pointer: str
    """JSON pointer into the request body: "/inputs/3/text"."""
    detail: str
    index: int | None = None
    """Which of several inputs."""


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """RFC 9457 problem details. `code` is stable; further members depend on it."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool = False
    retry_after_seconds: float | None = None
    pointer: str | None = None
    """JSON pointer to the fault in the request body."""
    index: int | None = None
    """Of the faulty input in a call with several."""
    errors: list[InputFault] | None = None
    """The first few faults, where there are several."""
    limit: int | float | None = None
    limit_name: str | None = None
    """Which of the tenant's limits."""
    allowed: list[str] | None = None
    nearest: str | None = None


# --- text -----------------------------------------------------------------------------------------------------------


def rfc3339(ms: int) -> str:
    """Unix milliseconds as RFC 3339 text in UTC, with milliseconds."""
    return f"{_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def optional_rfc3339(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def parse_rfc3339(text: str) -> int:
    """Unix milliseconds of an RFC 3339 time; ValueError where it is none."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


_PATH = re.compile(r"(?P<message>.*?) - at `(?P<key>key in )?\$(?P<path>.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+|\.\.\.)\]")


def split_fault(error: msgspec.ValidationError) -> tuple[str, str]:
    """Split msgspec's message into the fault and the JSON pointer of its place ("" for the whole document)."""
    match = _PATH.match(str(error))
    if match is None:
        return str(error), ""
    steps = (step["name"] or step["index"].replace("...", "-") for step in _STEP.finditer(match["path"]))
    return match["message"], "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
