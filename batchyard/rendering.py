"""The store's records as the API's answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from batchyard import results, schemas
from batchyard.catalog import QueueLoad
from batchyard.explain import outlook
from batchyard.jobs import State, format_id
from batchyard.pool_figures import HOUR_MS
from batchyard.results import TensorRendering
from batchyard.schemas import optional_rfc3339, rfc3339
from batchyard.settings import PoolSettings
from batchyard.store.base import (
    BulkView,
    ConsumerInfo,
    Delivery,
    DeliveryState,
    JobView,
    ModelVersion,
    PoolDecision,
    SpendRow,
    Webhook,
)
from batchyard.webhooks import Event

MEDIA_MSGPACK = "application/msgpack"

Form = Literal["json", "msgpack"]

_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode
_read_defaults = msgspec.json.Decoder(schemas.BulkDefaults).decode


def encode(answer: object, form: Form = "json") -> bytes:
    """The body of an answer."""
    return _to_json(answer) if form == "json" else _to_msgpack(answer)


def form_of(accept: str) -> Form:
    """How a reader of jobs wants them: MessagePack where it says so, which keeps tensors binary; otherwise JSON."""
    return "msgpack" if MEDIA_MSGPACK in accept else "json"


def job(
    view: JobView,
    *,
    load: QueueLoad,
    now_ms: int,
    position: int | None = None,
    form: Form = "json",
    tensors: TensorRendering = "numbers",
) -> schemas.Job:
    """A job as its owner sees it; `form` is that in which it will be encoded, for its result is encoded already."""
    seen = outlook(view, load=load, position=position, now_ms=now_ms)
    return schemas.Job(
        id=format_id(view.id),
        model=load.version.name,
        lane=load.lane.word,  # type: ignore[arg-type]
        state=view.state.word,  # type: ignore[arg-type]
        created_at=rfc3339(view.created_at_ms),
        priority=view.priority,
        started_at=optional_rfc3339(view.started_at_ms),
        finished_at=optional_rfc3339(view.finished_at_ms),
        deadline=optional_rfc3339(view.deadline_ms),
        late=view.state == State.SUCCEEDED and view.is_late,
        cancel_requested=view.cancel_requested,
        attempt=view.attempt,
        failures=view.failures,
        crashes=view.crashes,
        preemptions=view.preemptions,
        max_failures=view.max_failures,
        bulk_id=None if view.bulk_id is None else format_id(view.bulk_id),
        index=view.bulk_index,
        custom_id=view.custom_id,
        labels=list(view.labels),
        redrive_of=None if view.redrive_of is None else format_id(view.redrive_of),
        redriven_as=None if view.redriven_as is None else format_id(view.redriven_as),
        cost_estimate=view.cost_estimate,
        cost=view.cost,
        device_seconds=None if view.device_us is None else view.device_us / 1e6,
        cached=view.computed_by is not None,
        computed_by=format_id(view.computed_by) if view.computed_by else None,
        retry_at=optional_rfc3339(view.not_before_ms) if view.state == State.WAITING else None,
        position=seen.position,
        eta_seconds=seen.eta_seconds,
        waits_because=seen.waits_because,
        error=view.error,
        partial=_partial(view, form=form),
        result=_result(view, form=form, tensors=tensors),
    )


def _partial(view: JobView, *, form: Form) -> msgspec.Raw | msgspec.UnsetType:
    if view.partial_body is None:
        return msgspec.UNSET
    return msgspec.Raw(view.partial_body if form == "json" else _to_msgpack(msgspec.json.decode(view.partial_body)))


def _result(view: JobView, *, form: Form, tensors: TensorRendering) -> msgspec.Raw | msgspec.UnsetType:
    if view.state != State.SUCCEEDED or view.result_body is None or view.result_format is None:
        return msgspec.UNSET
    if form == "msgpack":
        return msgspec.Raw(results.to_msgpack(view.result_format, view.result_body))
    return msgspec.Raw(results.to_json(view.result_format, view.result_body, tensors=tensors))


def bulk(view: BulkView, *, load: QueueLoad) -> schemas.Bulk:
    """A bulk and how far it is; the ETA is that of its accepted jobs at the present speed of its queue."""
    defaults = _read_defaults(view.defaults)
    pending = view.jobs - sum(number for state, number in view.counts.items() if state.is_terminal)
    is_moving = pending > 0 and load.is_served and not view.paused and not load.is_paused
    eta_seconds = load.seconds_for(pending) if is_moving else None
    return schemas.Bulk(
        id=format_id(view.id),
        model=load.version.name,
        lane=load.lane.word,  # type: ignore[arg-type]
        jobs=view.jobs,
        chunk_size=view.chunk_size,
        created_at=rfc3339(view.created_at_ms),
        counts={state.word: number for state, number in sorted(view.counts.items()) if number},  # type: ignore[misc]
        cost=view.cost,
        sealed_at=optional_rfc3339(view.sealed_at_ms),
        finished=view.is_finished,
        paused=view.paused,
        cancel_requested=view.cancel_requested,
        eta_seconds=None if eta_seconds is None else round(eta_seconds, 3),
        priority=defaults.priority,
        labels=list(defaults.labels),
    )


def queue(load: QueueLoad, *, oldest_ms: int | None, now_ms: int) -> schemas.Queue:
    """One queue as seen at the last refresh of the catalog."""
    pending = load.queued + load.waiting + load.running
    eta_seconds = None if load.is_paused or not load.is_served else load.seconds_for(pending + 1)
    return schemas.Queue(
        lane=load.lane.word,  # type: ignore[arg-type]
        queued=load.queued,
        waiting=load.waiting,
        running=load.running,
        paused=load.is_paused,
        backlog_seconds=load.backlog_seconds,
        oldest_queued_seconds=age_seconds(oldest_ms, now_ms=now_ms),
        eta_seconds=None if eta_seconds is None else round(eta_seconds, 3),
        consumers=load.ready,
    )


def decision(made: PoolDecision, *, now_ms: int) -> schemas.PoolScale:
    """What a scaler decided, and how long ago."""
    return schemas.PoolScale(
        pool=made.pool,
        replicas=made.replicas,
        live=made.live,
        rule=made.rule,
        reason=made.reason,
        decided_at=rfc3339(made.decided_at_ms),
        age_seconds=made.age_seconds(now_ms=now_ms),
        stale=made.is_stale(now_ms=now_ms),
        backlog_jobs=made.backlog_jobs,
        backlog_seconds=made.backlog_seconds,
        binding_deadline=optional_rfc3339(made.binding_deadline_ms),
        unmeetable_jobs=made.unmeetable_jobs,
        zones=dict(made.zones),
    )


def spend(rows: Sequence[SpendRow], *, pool: PoolSettings, now_ms: int) -> schemas.Spend:
    """What a pool cost; `rows` are those of the month, of all pools."""
    mine = [row for row in rows if row.pool == pool.name]
    hour = [row for row in mine if row.hour == now_ms // HOUR_MS]
    is_priced = pool.price_per_hour is not None
    return schemas.Spend(
        hours_this_hour=round(sum(row.replica_seconds for row in hour) / 3600, 4),
        hours_this_month=round(sum(row.replica_seconds for row in mine) / 3600, 4),
        dollars_this_hour=round(sum(row.dollars for row in hour), 4) if is_priced else None,
        dollars_this_month=round(sum(row.dollars for row in mine), 4) if is_priced else None,
    )


def webhook(endpoint: Webhook) -> schemas.Webhook:
    """An endpoint, without its secrets."""
    return schemas.Webhook(
        id=format_id(endpoint.id),
        created_at=rfc3339(endpoint.created_at_ms),
        events=list(endpoint.events),  # type: ignore[arg-type]
        url=endpoint.url,
        description=endpoint.description,
        disabled_at=optional_rfc3339(endpoint.disabled_at_ms),
        disabled_because=endpoint.disabled_because,
    )


def webhook_delivery(delivery: Delivery) -> schemas.WebhookDelivery:
    subject = format_id(delivery.subject_id)
    is_of_bulk = delivery.event is Event.BULK_FINISHED
    return schemas.WebhookDelivery(
        id=format_id(delivery.id),
        webhook_id=format_id(delivery.webhook_id),
        event=delivery.event.word,  # type: ignore[arg-type]
        url=delivery.url,
        state=delivery.state.word,  # type: ignore[arg-type]
        created_at=rfc3339(delivery.created_at_ms),
        job_id=None if is_of_bulk else subject,
        bulk_id=subject if is_of_bulk else None,
        attempts=delivery.attempts,
        next_attempt_at=rfc3339(delivery.due_at_ms) if delivery.state is DeliveryState.PENDING else None,
        ended_at=optional_rfc3339(delivery.ended_at_ms),
        status=delivery.status,
        error=delivery.error,
    )


def age_seconds(since_ms: int | None, *, now_ms: int) -> float | None:
    return None if since_ms is None else max(0, now_ms - since_ms) / 1000


def model_version(
    version: ModelVersion,
    *,
    queues: list[schemas.Queue],
    consumers: Sequence[ConsumerInfo],
    pools: Sequence[PoolSettings],
) -> schemas.ModelVersion:
    serving = {pool.name for pool in pools if {version.model, version.name} & set(pool.models)}
    serving |= {info.pool for info in consumers if set(info.queue_ids) & set(version.queue_ids.values())}
    return schemas.ModelVersion(
        name=version.name,
        version=version.version,
        weight=version.weight,
        active=version.active,
        runtime=version.runtime,
        lane=version.default_lane.word,  # type: ignore[arg-type]
        queues=queues,
        warm=any(info.state == "ready" and info.has_loaded(version.name) for info in consumers),
        pools=sorted(serving),
        digest=version.digest,
        input_schema=version.input_schema,
        cost_unit=version.cost_unit,
        seconds_per_unit=version.seconds_per_unit,
        load_seconds=version.load_seconds,
        load_error=version.load_error,
    )
