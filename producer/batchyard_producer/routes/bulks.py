"""Bulks: create, look, seal, cancel, pause, resume, list. Feeding one and reading its results are hot."""

from __future__ import annotations

from starlette.responses import Response

from batchyard import rendering, schemas
from batchyard.errors import Gone, IdempotencyConflict, InvalidRequest, NotFound, QueueFull, TooLarge, UnknownModel
from batchyard.jobs import format_id
from batchyard.store.base import BulkView
from batchyard_producer.bodies import idempotency_key, read_small, whole_number
from batchyard_producer.calls import IDEMPOTENCY_KEY, Asked, Call, answer
from batchyard_producer.routes.jobs import AFTER, LIMIT, MAX_PAGE, cursor


async def create_bulk(asked: Asked) -> Response:
    services = asked.services
    body = await read_small(asked)
    key = idempotency_key(asked.request)
    config = services.submitter.bulk(body, caller=asked.identity.caller, idempotency_key=key)
    view = await services.call(services.store.create_bulk, config)
    return answer(_shown(asked, view), status=201, location=f"/v1/bulks/{format_id(view.id)}")


async def get_bulk(asked: Asked) -> Response:
    number = asked.path_id("bulk")
    return answer(
        _shown(asked, await asked.services.call(asked.services.store.get_bulk, number, tenant_id=asked.tenant_id))
    )


async def list_bulks(asked: Asked) -> Response:
    given = asked.query("after", "limit")
    limit = whole_number(given.get("limit"), name="limit", default=100, least=1, most=MAX_PAGE)
    views = await asked.services.call(
        asked.services.store.list_bulks,
        tenant_id=asked.tenant_id,
        before_id=cursor(given.get("after")),
        limit=limit,
    )
    following = format_id(views[-1].id) if len(views) == limit else None
    return answer(schemas.BulkList(bulks=[_shown(asked, view) for view in views], next=following))


async def seal_bulk(asked: Asked) -> Response:
    number = asked.path_id("bulk")
    view = await asked.services.call(asked.services.store.seal_bulk, tenant_id=asked.tenant_id, bulk_id=number)
    return answer(_shown(asked, view))


async def cancel_bulk(asked: Asked) -> Response:
    number = asked.path_id("bulk")
    view = await asked.services.call(asked.services.store.cancel_bulk, number, tenant_id=asked.tenant_id)
    return answer(_shown(asked, view))


async def pause_bulk(asked: Asked) -> Response:
    return await _set_paused(asked, paused=True)


async def resume_bulk(asked: Asked) -> Response:
    return await _set_paused(asked, paused=False)


async def _set_paused(asked: Asked, *, paused: bool) -> Response:
    number = asked.path_id("bulk")
    view = await asked.services.call(asked.services.store.pause_bulk, number, tenant_id=asked.tenant_id, paused=paused)
    return answer(_shown(asked, view))


def _shown(asked: Asked, view: BulkView) -> schemas.Bulk:
    return rendering.bulk(view, load=asked.services.catalog.load(view.queue_id))


def _steering(verb: str, summary: str, about: str, handler: object) -> Call:
    return Call(
        method="POST",
        path=f"/v1/bulks/{{id}}/{verb}",
        summary=summary,
        about=about,
        tag="bulks",
        handler=handler,  # type: ignore[arg-type]
        answer=schemas.Bulk,
        errors=(NotFound, Gone),
    )


CALLS = (
    Call(
        method="POST",
        path="/v1/bulks",
        summary="Create a bulk: many jobs as a unit, of any size",
        about="Feed it in chunks, then seal it. Under a known Idempotency-Key the bulk that it made is answered again.",
        tag="bulks",
        handler=create_bulk,
        links={"/id": "/v1/bulks/{id}"},
        parameters=(IDEMPOTENCY_KEY,),
        body=schemas.BulkRequest,
        status=201,
        answer=schemas.Bulk,
        errors=(InvalidRequest, IdempotencyConflict, UnknownModel, TooLarge, QueueFull),
    ),
    Call(
        method="GET",
        path="/v1/bulks",
        summary="List bulks, newest first",
        tag="bulks",
        handler=list_bulks,
        parameters=(AFTER, LIMIT),
        answer=schemas.BulkList,
        errors=(InvalidRequest,),
    ),
    Call(
        method="GET",
        path="/v1/bulks/{id}",
        summary="A bulk: its jobs by state, its cost so far, its ETA",
        tag="bulks",
        handler=get_bulk,
        answer=schemas.Bulk,
        errors=(NotFound, Gone),
    ),
    _steering("seal", "Seal a bulk", "No chunk can follow; sealing again changes nothing.", seal_bulk),
    _steering(
        "cancel", "Cancel a bulk", "Seals it and cancels all its jobs that have not ended, step by step.", cancel_bulk
    ),
    _steering(
        "pause", "Pause a bulk", "No job of it is claimed once this has answered; running ones go on.", pause_bulk
    ),
    _steering("resume", "Resume a bulk", "Its jobs may be claimed again.", resume_bulk),
)
