"""Webhooks: a tenant's endpoints, and what became of the messages to them."""

from __future__ import annotations

from starlette.responses import Response

from batchyard import rendering, schemas
from batchyard.errors import Conflict, InvalidRequest, NotFound
from batchyard.jobs import format_id, parse_id
from batchyard.redriving import unix_ms
from batchyard.store.base import DeliveryFilter, DeliveryState
from batchyard_producer.bodies import read_struct, whole_number
from batchyard_producer.calls import Asked, Call, Parameter, answer
from batchyard_producer.routes.jobs import cursor

MAX_PAGE = 1000
STEP_REPLAYED = 1000

_STATES = {state.word: state for state in DeliveryState}


async def create_webhook(asked: Asked) -> Response:
    request = await read_struct(asked, schemas.WebhookRequest)
    url = asked.services.submitter.webhook_url(request.url, pointer="/url")
    assert url is not None
    made = await asked.services.call(
        asked.services.store.create_webhook,
        tenant_id=asked.tenant_id,
        url=url,
        events=request.events,
        description=request.description,
    )
    shown = rendering.webhook(made)
    fields = {name: getattr(shown, name) for name in schemas.Webhook.__struct_fields__}
    created = schemas.CreatedWebhook(**fields, secret=made.secrets[0])
    return _secret(answer(created, status=201, location=f"/v1/webhooks/{shown.id}"))


async def list_webhooks(asked: Asked) -> Response:
    found = await asked.services.call(asked.services.store.webhooks, tenant_id=asked.tenant_id)
    return answer(schemas.WebhookList(webhooks=[rendering.webhook(each) for each in found]))


async def show_secrets(asked: Asked) -> Response:
    number = asked.path_id("webhook")
    found = await asked.services.call(asked.services.store.webhooks, tenant_id=asked.tenant_id)
    for each in found:
        if each.id == number:
            return _secret(answer(schemas.WebhookSecrets(secrets=list(each.secrets))))
    raise NotFound(f"there is no webhook endpoint {format_id(number)}")


async def rotate_webhook(asked: Asked) -> Response:
    number = asked.path_id("webhook")
    request = await read_struct(asked, schemas.WebhookRotation, absent=schemas.WebhookRotation())
    rotated = await asked.services.call(
        asked.services.store.rotate_webhook,
        number,
        tenant_id=asked.tenant_id,
        overlap_ms=round(request.overlap_seconds * 1000),
    )
    return _secret(answer(schemas.WebhookSecrets(secrets=list(rotated.secrets))))


async def enable_webhook(asked: Asked) -> Response:
    store, number = asked.services.store, asked.path_id("webhook")
    return answer(rendering.webhook(await asked.services.call(store.enable_webhook, number, tenant_id=asked.tenant_id)))


async def disable_webhook(asked: Asked) -> Response:
    changed = await asked.services.call(
        asked.services.store.disable_webhook,
        asked.path_id("webhook"),
        tenant_id=asked.tenant_id,
        because="disabled by its owner",
    )
    return answer(rendering.webhook(changed))


async def delete_webhook(asked: Asked) -> Response:
    store, number = asked.services.store, asked.path_id("webhook")
    await asked.services.call(store.delete_webhook, number, tenant_id=asked.tenant_id)
    return Response(status_code=204)


async def list_deliveries(asked: Asked) -> Response:
    given = asked.query("webhook_id", "job_id", "bulk_id", "state", "after", "limit")
    state = given.get("state")
    if state is not None and state not in _STATES:
        raise InvalidRequest(f'state is "{state[:32]}"; it must be one of {", ".join(_STATES)}', allowed=list(_STATES))
    subject = given.get("job_id") or given.get("bulk_id")
    limit = whole_number(given.get("limit"), name="limit", default=100, least=1, most=MAX_PAGE)
    wanted = DeliveryFilter(
        tenant_id=asked.tenant_id,
        webhook_id=_number(given.get("webhook_id"), name="webhook_id"),
        subject_id=_number(subject, name="job_id or bulk_id"),
        state=None if state is None else _STATES[state],
        before_id=cursor(given.get("after")),
    )
    found = await asked.services.call(asked.services.store.deliveries, wanted, limit=limit)
    return answer(
        schemas.WebhookDeliveryList(
            deliveries=[rendering.webhook_delivery(each) for each in found],
            next=format_id(found[-1].id) if len(found) == limit else None,
        )
    )


async def replay(asked: Asked) -> Response:
    request = await read_struct(asked, schemas.WebhookReplay)
    if not (request.delivery_id or request.webhook_id or request.ended_from or request.ended_before):
        raise InvalidRequest("say which: give `delivery_id`, `webhook_id`, `ended_from` or `ended_before`", pointer="")
    state = None if request.state is None else _STATES[request.state]
    wanted = DeliveryFilter(
        tenant_id=asked.tenant_id,
        id=_number(request.delivery_id, name="delivery_id"),
        webhook_id=_number(request.webhook_id, name="webhook_id"),
        state=DeliveryState.DEAD if state is None and request.delivery_id is None else state,
        from_ms=unix_ms(request.ended_from),
        before_ms=unix_ms(request.ended_before),
        before_id=cursor(request.after),
    )
    ids = await asked.services.call(asked.services.store.replay_deliveries, wanted, limit=STEP_REPLAYED)
    has_more = len(ids) == STEP_REPLAYED
    return answer(schemas.WebhookReplayed(count=len(ids), next=format_id(ids[-1]) if has_more else None))


def _number(text: str | None, *, name: str) -> int | None:
    if text is None:
        return None
    number = parse_id(text)
    if number is None:
        raise InvalidRequest(f'{name} is "{text[:32]}"; an id has 16 hexadecimal digits')
    return number


def _secret(response: Response) -> Response:
    response.headers["cache-control"] = "no-store"
    return response


def _call(method: str, path: str, summary: str, **rest: object) -> Call:
    return Call(method=method, path=path, summary=summary, tag="webhooks", scope="webhooks", **rest)  # type: ignore[arg-type]


_ID = {"type": "string", "pattern": "^[0-9a-f]{16}$"}

CALLS = (
    _call(
        "POST",
        "/v1/webhooks",
        "Make an endpoint that hears of all jobs and bulks that end from now on",
        about="Messages are signed by Standard Webhooks with the secret that is answered, sent until the receiver "
        "answers 2xx, over about three days, and carry the same `webhook-id` each time. Addresses beyond the public "
        "internet are refused.",
        handler=create_webhook,
        body=schemas.WebhookRequest,
        status=201,
        answer=schemas.CreatedWebhook,
        errors=(InvalidRequest, Conflict),
    ),
    _call("GET", "/v1/webhooks", "List endpoints", handler=list_webhooks, answer=schemas.WebhookList),
    _call(
        "GET",
        "/v1/webhooks/{id}/secret",
        "The secrets of an endpoint by which messages are verified now",
        handler=show_secrets,
        answer=schemas.WebhookSecrets,
        errors=(NotFound,),
    ),
    _call(
        "POST",
        "/v1/webhooks/{id}/rotate",
        "Give an endpoint a new secret",
        about="For `overlap_seconds` messages are signed with both, so that receivers can change without a pause.",
        handler=rotate_webhook,
        body=schemas.WebhookRotation,
        body_required=False,
        answer=schemas.WebhookSecrets,
        errors=(InvalidRequest, NotFound),
    ),
    _call(
        "POST",
        "/v1/webhooks/{id}/disable",
        "Disable an endpoint",
        about="It hears of nothing that ends meanwhile; what is pending for it waits until it is enabled.",
        handler=disable_webhook,
        answer=schemas.Webhook,
        errors=(NotFound,),
    ),
    _call(
        "POST",
        "/v1/webhooks/{id}/enable",
        "Enable an endpoint that was disabled, by hand or by a receiver that answered 410",
        handler=enable_webhook,
        answer=schemas.Webhook,
        errors=(NotFound,),
    ),
    _call(
        "DELETE",
        "/v1/webhooks/{id}",
        "Delete an endpoint with its deliveries",
        handler=delete_webhook,
        status=204,
        errors=(NotFound, Conflict),
    ),
    _call(
        "GET",
        "/v1/webhook-deliveries",
        "List deliveries, newest first; they are kept as long as their jobs and bulks",
        handler=list_deliveries,
        parameters=(
            Parameter(name="webhook_id", about="Of this endpoint", schema=_ID),
            Parameter(name="job_id", about="Of this job", schema=_ID),
            Parameter(name="bulk_id", about="Of this bulk", schema=_ID),
            Parameter(name="state", about="In this state", schema={"enum": list(_STATES)}),
            Parameter(name="after", about="The `next` of the page before", schema=_ID),
            Parameter(name="limit", about="Per page", schema={"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
        ),
        answer=schemas.WebhookDeliveryList,
        errors=(InvalidRequest,),
    ),
    _call(
        "POST",
        "/v1/webhook-deliveries/replay",
        "Send messages once more",
        about="One bounded step, of the newest first; go on with `after` until there is no `next`. Where no `state` is "
        "given, dead deliveries; of a `delivery_id` whatever became of it.",
        handler=replay,
        body=schemas.WebhookReplay,
        answer=schemas.WebhookReplayed,
        errors=(InvalidRequest,),
    ),
)
