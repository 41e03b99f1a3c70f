"""From a request's body to jobs that a store can take: read strictly, resolve, validate, estimate, admit.

Used by the API and by `Client.direct`. Nothing here waits or touches the database, beyond the catalog's own refresh.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw

from batchyard import strict_json
from batchyard.catalog import Catalog
from batchyard.destinations import check_url, networks
from batchyard.errors import InvalidRequest, TooLarge, UnknownModel
from batchyard.inputs import PAYLOAD_MEMBER, Place, check_sizes, payload_references
from batchyard.jobs import Lane, PayloadReference, Submission, redrive_key
from batchyard.schemas import BulkChunk, BulkDefaults, BulkLine, BulkRequest, JobsRequest, split_fault
from batchyard.settings import QueueSettings, ServerSettings, WebhookSettings
from batchyard.store.base import BulkConfig, BulkView, JobInput, JobView, ModelVersion

T = TypeVar("T")

UNKNOWN_SPEED_SLACK_MS = 1_000
"""How long before its deadline a job must start where its model's speed is not known."""
START_MARGIN = 1.5
"""A job's own run time counts this many times in its latest safe start."""

_JOBS_MEMBERS = tuple(f'"{name}"'.encode() for name in JobsRequest.__struct_fields__)
_CHUNK_MEMBERS = tuple(f'"{name}"'.encode() for name in BulkChunk.__struct_fields__)
_BULK_MEMBERS = tuple(f'"{name}"'.encode() for name in BulkRequest.__struct_fields__)
_LINE_MEMBERS = tuple(f'"{name}"'.encode() for name in BulkLine.__struct_fields__)
_PAYLOAD_MARK = PAYLOAD_MEMBER.encode()

_decode_jobs = msgspec.json.Decoder(JobsRequest).decode
_decode_chunk = msgspec.json.Decoder(BulkChunk).decode
_decode_lines = msgspec.json.Decoder(BulkLine).decode_lines
_decode_any_lines = msgspec.json.Decoder().decode_lines
_decode_bulk = msgspec.json.Decoder(BulkRequest).decode
_decode_defaults = msgspec.json.Decoder(BulkDefaults).decode
_encode = msgspec.json.Encoder().encode
_encode_canonical = msgspec.json.Encoder(order="sorted").encode


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf jobs are submitted."""

    tenant_id: int
    created_by: str | None = None
    """Public prefix of the API key."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may be committed. Whether its payloads are the tenant's own, the store finds at the commit."""

    submission: Submission
    version: ModelVersion
    lane: Lane
    several: bool
    """The request gave `inputs`, so the answer is a list."""


class BulkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What every chunk of one bulk shares: its defaults, resolved. Never changes, so it may be kept."""

    bulk_id: int
    tenant_id: int
    queue_id: int
    chunk_size: int
    priority: int
    deadline_ms: int | None
    max_failures: int
    params: bytes | None
    labels: tuple[str, ...]
    validate: bool


class Submitter:
    """Turns requests into submissions within the configured limits. Safe to share between threads."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        server: ServerSettings,
        queues: QueueSettings,
        webhooks: WebhookSettings | None = None,
    ) -> None:
        self._catalog = catalog
        self._server = server
        self._queues = queues
        self._webhook_networks = networks((webhooks or WebhookSettings()).allowed_networks)

    def jobs(
        self,
        body: bytes,
        *,
        model: str,
        caller: Caller,
        now_ms: int,
        idempotency_key: str | None = None,
        trace_context: str | None = None,
    ) -> Prepared:
        """POST /v1/models/{model}/jobs. Raises InvalidRequest, InvalidInput, UnknownModel, TooLarge, QueueFull."""
        request = read_envelope(_decode_jobs, body)
        several = request.inputs is not UNSET
        values = self._jobs_values(request, body)
        version = self._catalog.resolve(model)
        lane = _lane(version, tolerant=request.tolerant)
        place = _place_in_inputs if several else _place_of_input
        raws = request.inputs if several else [request.input]
        inputs, lengths = self._measure(raws, several=several)  # type: ignore[arg-type]
        payloads = self._check(values, inputs=inputs, body=body, version=version, place=place, several=several)
        queue_id = version.queue_ids[lane]
        costs = _costs(lengths, version)
        deadline_ms = deadline_after(request.deadline_seconds, now_ms)
        self._catalog.admit(queue_id, len(inputs), tenant_id=caller.tenant_id, size_bytes=sum(lengths))
        submission = Submission(
            tenant_id=caller.tenant_id,
            queue_id=queue_id,
            inputs=inputs,
            costs=costs,
            priority=request.priority,
            deadline_ms=deadline_ms,
            start_by_ms=latest_start_ms(deadline_ms, cost=max(costs), version=version),
            max_failures=request.max_failures or self._queues.max_failures,
            params=_encode(request.params) if request.params else None,
            labels=_labels(request.labels),
            custom_ids=[request.custom_id] if request.custom_id is not None else request.custom_ids,
            created_by=caller.created_by,
            trace_context=trace_context,
            payloads=payloads,
            webhook=self.webhook_url(request.webhook, pointer="/webhook"),
            idempotency_key=idempotency_key,
            idempotency_digest=None if idempotency_key is None else _jobs_digest(request, model=model, values=values),
        )
        return Prepared(submission=submission, version=version, lane=lane, several=several)

    def chunk(self, body: bytes, *, plan: BulkPlan, caller: Caller, idempotency_key: str | None = None) -> Prepared:
        """POST /v1/bulks/{id}/jobs as JSON. Raises as `jobs` does."""
        chunk = read_envelope(_decode_chunk, body)
        self._check_count(chunk.inputs, limit=plan.chunk_size)
        _check_custom_ids(chunk.custom_ids, count=len(chunk.inputs))
        document = strict_json.decode(body)
        if strict_json.needs_walk(body):
            strict_json.walk(document)
        strict_json.refuse_repeated_members(body, members=_CHUNK_MEMBERS)
        return self._chunk(
            chunk.inputs,
            values=document["inputs"],
            custom_ids=chunk.custom_ids,
            body=body,
            place=_place_in_inputs,
            plan=plan,
            caller=caller,
            idempotency_key=idempotency_key,
        )

    def chunk_lines(
        self, body: bytes, *, plan: BulkPlan, caller: Caller, idempotency_key: str | None = None
    ) -> Prepared:
        """POST /v1/bulks/{id}/jobs as NDJSON: a line is `{"input": …, "custom_id": …}`. Raises as `jobs` does."""
        lines = read_envelope(_decode_lines, body)
        self._check_count(lines, limit=plan.chunk_size)
        values = [document["input"] for document in _line_documents(body, count=len(lines))]
        custom_ids = [line.custom_id for line in lines]
        return self._chunk(
            [line.input for line in lines],
            values=values,
            custom_ids=custom_ids if any(custom_ids) else None,
            body=body,
            place=_place_of_line,
            plan=plan,
            caller=caller,
            idempotency_key=idempotency_key,
        )

    def bulk(self, body: bytes, *, caller: Caller, idempotency_key: str | None = None) -> BulkConfig:
        """POST /v1/bulks."""
        request = read_envelope(_decode_bulk, body)
        _check_whole(body, members=_BULK_MEMBERS)
        limit = self._server.max_inputs
        if request.chunk_size is not None and request.chunk_size > limit:
            raise InvalidRequest(
                f"chunk_size is {request.chunk_size}; at most {limit}", pointer="/chunk_size", limit=limit
            )
        version = self._catalog.resolve(request.model)
        defaults = BulkDefaults(**{name: getattr(request, name) for name in BulkDefaults.__struct_fields__})
        return BulkConfig(
            tenant_id=caller.tenant_id,
            queue_id=version.queue_ids[_lane(version, tolerant=request.tolerant)],
            defaults=_encode(defaults),
            chunk_size=request.chunk_size or limit,
            created_by=caller.created_by,
            idempotency_key=idempotency_key,
            idempotency_digest=None if idempotency_key is None else _digest(request),
            webhook=self.webhook_url(request.webhook, pointer="/webhook"),
        )

    def plan(self, bulk: BulkView) -> BulkPlan:
        """Resolve what the chunks of a bulk share."""
        defaults = _decode_defaults(bulk.defaults)
        return BulkPlan(
            bulk_id=bulk.id,
            tenant_id=bulk.tenant_id,
            queue_id=bulk.queue_id,
            chunk_size=bulk.chunk_size,
            priority=defaults.priority,
            deadline_ms=deadline_after(defaults.deadline_seconds, bulk.created_at_ms),
            max_failures=defaults.max_failures or self._queues.max_failures,
            params=_encode(defaults.params) if defaults.params else None,
            labels=_labels(defaults.labels),
            validate=defaults.validate,
        )

    def redrive(self, view: JobView, given: JobInput, *, to: str | None, caller: Caller, now_ms: int) -> Submission:
        """The successor of a dead job: as it was submitted, with the time that it had, for its own version or another.

        Raises UnknownModel, InvalidInput where it does not fit the other version's schema, QueueFull.
        """
        load = self._catalog.load(view.queue_id)
        version = load.version if to is None else self._catalog.resolve(to)
        if not version.active:
            raise UnknownModel(f"{version.name} is no longer configured: name another version with `to`")
        payloads = self._check(
            [strict_json.decode(given.body)],
            inputs=[given.body],
            body=given.body,
            version=None if version.id == load.version.id else version,
            place=_place_of_input,
            several=False,
        )
        queue_id = version.queue_ids[load.lane]
        costs = _costs([len(given.body)], version)
        deadline_ms = None if view.deadline_ms is None else now_ms + max(1, view.deadline_ms - view.created_at_ms)
        self._catalog.admit(queue_id, 1, tenant_id=caller.tenant_id, size_bytes=len(given.body))
        return Submission(
            tenant_id=caller.tenant_id,
            queue_id=queue_id,
            inputs=[given.body],
            costs=costs,
            priority=view.priority,
            deadline_ms=deadline_ms,
            start_by_ms=latest_start_ms(deadline_ms, cost=max(costs), version=version),
            max_failures=view.max_failures,
            params=given.params,
            labels=view.labels,
            custom_ids=[view.custom_id],
            created_by=caller.created_by,
            affinity_key=given.affinity_key,
            max_cost=given.max_cost,
            input_digests=None if given.digest is None else [given.digest],
            redrive_of=view.id,
            payloads=payloads,
            webhook=given.webhook,
            idempotency_key=redrive_key(view.id),
        )

    def webhook_url(self, url: str | None, *, pointer: str) -> str | None:
        """Where webhooks may go: InvalidRequest otherwise."""
        return None if url is None else check_url(url, allowed=self._webhook_networks, pointer=pointer)

    def _jobs_values(self, request: JobsRequest, body: bytes) -> list[Any]:
        """The decoded inputs, after every check of the envelope."""
        several = request.inputs is not UNSET
        if several == (request.input is not UNSET):
            raise InvalidRequest("give exactly one of `input` and `inputs`", pointer="")
        if not several:
            if request.custom_ids is not None:
                raise InvalidRequest(
                    "`custom_ids` goes with `inputs`; with `input` give `custom_id`", pointer="/custom_ids"
                )
            assert isinstance(request.input, Raw)
            text = bytes(request.input)
            # With no quoted text outside the input but one name, no member can be there twice.
            if body.count(b'"') - text.count(b'"') != 2:
                _check_whole(body, members=_JOBS_MEMBERS)
            elif strict_json.needs_walk(body) or strict_json.may_be_deep(body):
                strict_json.walk(strict_json.decode(body))
            return [strict_json.decode(text, what="the input")]
        assert isinstance(request.inputs, list)
        if request.custom_id is not None:
            raise InvalidRequest("`custom_id` goes with `input`; with `inputs` give `custom_ids`", pointer="/custom_id")
        self._check_count(request.inputs, limit=self._server.max_inputs)
        _check_custom_ids(request.custom_ids, count=len(request.inputs))
        document = strict_json.decode(body)
        if strict_json.needs_walk(body):
            strict_json.walk(document)
        elif request.params:
            strict_json.walk(request.params, pointer="/params", depth=2)
        strict_json.refuse_repeated_members(body, members=_JOBS_MEMBERS)
        values: list[Any] = document["inputs"]
        return values

    def _chunk(
        self,
        raws: Sequence[Raw],
        *,
        values: Sequence[Any],
        custom_ids: Sequence[str | None] | None,
        body: bytes,
        place: Place,
        plan: BulkPlan,
        caller: Caller,
        idempotency_key: str | None,
    ) -> Prepared:
        load = self._catalog.load(plan.queue_id)
        inputs, lengths = self._measure(raws, several=True)
        payloads = self._check(
            values,
            inputs=inputs,
            body=body,
            version=load.version if plan.validate else None,
            place=place,
            several=True,
        )
        costs = _costs(lengths, load.version)
        self._catalog.admit(plan.queue_id, len(inputs), tenant_id=plan.tenant_id, size_bytes=sum(lengths))
        submission = Submission(
            tenant_id=plan.tenant_id,
            queue_id=plan.queue_id,
            inputs=inputs,
            costs=costs,
            priority=plan.priority,
            deadline_ms=plan.deadline_ms,
            start_by_ms=latest_start_ms(plan.deadline_ms, cost=max(costs), version=load.version),
            max_failures=plan.max_failures,
            params=plan.params,
            labels=plan.labels,
            custom_ids=custom_ids,
            created_by=caller.created_by,
            payloads=payloads,
            bulk_id=plan.bulk_id,
            idempotency_key=idempotency_key,
            idempotency_digest=None if idempotency_key is None else _digest([values, custom_ids]),
        )
        return Prepared(submission=submission, version=load.version, lane=load.lane, several=True)

    def _measure(self, raws: Sequence[Raw], *, several: bool) -> tuple[list[bytes], list[int]]:
        inputs = list(map(bytes, raws))
        return inputs, check_sizes(inputs, max_input_bytes=self._server.max_input_bytes, several=several)

    def _check(
        self,
        values: Sequence[Any],
        *,
        inputs: Sequence[bytes],
        body: bytes,
        version: ModelVersion | None,
        place: Place,
        several: bool,
    ) -> Sequence[PayloadReference]:
        """Nesting, schema (of `version`) and payload references of the inputs; returns these references."""
        for index, text in enumerate(inputs):
            if strict_json.may_be_deep(text):
                strict_json.walk(values[index], pointer=place(index), depth=3)
        validator = self._catalog.validator(version) if version is not None else None
        if validator is not None:
            validator.check(values, place=place, several=several)
        # The name of the member may also be spelled with escapes.
        if _PAYLOAD_MARK in body or b"\\u" in body:
            return payload_references(values, place=place)
        return ()

    def _check_count(self, inputs: Sequence[object], *, limit: int) -> None:
        if not inputs:
            raise InvalidRequest("there are no inputs: give at least one", pointer="/inputs")
        if len(inputs) > limit:
            raise TooLarge(
                f"{len(inputs)} inputs in one call; the limit is {limit}: send several calls, or a bulk", limit=limit
            )


def read_envelope(decode: Callable[[bytes], T], body: bytes) -> T:
    """Decode an envelope; a wrong member is named by its JSON pointer."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        fault, pointer = split_fault(error)
        raise InvalidRequest(f"{fault} (at {pointer or 'the top'})", pointer=pointer) from error
    except RecursionError as error:
        raise strict_json.too_deep() from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise strict_json.malformed(error) from error


def _check_whole(body: bytes, *, members: Sequence[bytes]) -> None:
    """The checks that a small document gets as one."""
    if strict_json.needs_walk(body) or strict_json.may_be_deep(body):
        strict_json.walk(strict_json.decode(body))
    strict_json.refuse_repeated_members(body, members=members)


def _line_documents(body: bytes, *, count: int) -> Sequence[Any]:
    """The lines of an NDJSON chunk decoded whole, after the checks that look beyond single values."""
    try:
        documents = _decode_any_lines(body)
    except RecursionError as error:
        raise strict_json.too_deep() from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise strict_json.malformed(error) from error
    # Every line has an `input`; as many names as lines mean one in each. The same for `custom_id`.
    named = sum("custom_id" in document for document in documents)
    suspicious = b"\\u" in body or body.count(b'"input"') != count or body.count(b'"custom_id"') != named
    if suspicious or strict_json.needs_walk(body):
        for index, line in enumerate(filter(None, map(bytes.strip, body.split(b"\n")))):
            try:
                strict_json.walk(documents[index])
                strict_json.refuse_repeated_members(line, members=_LINE_MEMBERS)
            except InvalidRequest as fault:
                raise InvalidRequest(f"line {index}: {fault.message}", index=index, **fault.details) from fault
    return documents


def _check_custom_ids(custom_ids: Sequence[str | None] | None, *, count: int) -> None:
    if custom_ids is not None and len(custom_ids) != count:
        raise InvalidRequest(
            f"{len(custom_ids)} custom_ids for {count} inputs: give one per input", pointer="/custom_ids"
        )


def _place_of_input(_: int) -> str:
    return "/input"


def _place_in_inputs(index: int) -> str:
    return f"/inputs/{index}"


def _place_of_line(_: int) -> str:
    """Within the line, which the fault's index names."""
    return "/input"


def _lane(version: ModelVersion, *, tolerant: bool | None) -> Lane:
    if tolerant is None:
        return version.default_lane
    return Lane.TOLERANT if tolerant else Lane.FIRM


def _costs(lengths: list[int], version: ModelVersion) -> list[int]:
    units = version.units_per_byte
    return lengths if units is None else [int(length * units) + 1 for length in lengths]


def deadline_after(deadline_seconds: float | None, from_ms: int) -> int | None:
    return None if deadline_seconds is None else from_ms + max(1, round(deadline_seconds * 1000))


def latest_start_ms(deadline_ms: int | None, *, cost: int, version: ModelVersion) -> int | None:
    """Latest safe start: the deadline less the job's own run time with a margin."""
    if deadline_ms is None:
        return None
    if version.seconds_per_unit is None:
        return deadline_ms - UNKNOWN_SPEED_SLACK_MS
    return deadline_ms - round(START_MARGIN * 1000 * cost * version.seconds_per_unit)


def _labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Each once, in the order given."""
    return tuple(dict.fromkeys(labels))


def _jobs_digest(request: JobsRequest, *, model: str, values: Sequence[Any]) -> bytes:
    shared = [getattr(request, name) for name in JobsRequest.__struct_fields__ if name not in {"input", "inputs"}]
    return _digest([model, request.inputs is not UNSET, shared, values])


def _digest(document: Any) -> bytes:
    """Hash of the canonical form: white space, escapes and the order of members make no difference."""
    return hashlib.sha256(_encode_canonical(document)).digest()
