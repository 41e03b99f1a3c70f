"""Administration: tenants and API keys."""

from __future__ import annotations

from starlette.responses import Response

from batchyard import keys, schemas
from batchyard.errors import Conflict, InvalidRequest, NotFound
from batchyard.schemas import optional_rfc3339, rfc3339
from batchyard.store.base import ApiKey
from batchyard_producer.bodies import read_struct
from batchyard_producer.calls import Asked, Call, answer


async def create_key(asked: Asked) -> Response:
    store = asked.services.store
    request = await read_struct(asked, schemas.KeyRequest)
    tenants = {tenant.name: tenant.id for tenant in await asked.services.call(store.tenants)}
    if request.tenant not in tenants:
        raise NotFound(f'there is no tenant "{request.tenant[:64]}"', allowed=sorted(tenants))
    made = keys.mint()
    life = request.expires_in_seconds
    key = await asked.services.call(
        store.create_key,
        prefix=made.prefix,
        tenant_id=tenants[request.tenant],
        name=request.name,
        digest=made.digest,
        scopes=list(dict.fromkeys(request.scopes)),
        expires_at_ms=None if life is None else store.now_ms() + round(life * 1000),
    )
    return _made(key, text=made.text)


async def rotate_key(asked: Asked) -> Response:
    request = await read_struct(asked, schemas.KeyRotation, absent=schemas.KeyRotation())
    made = keys.mint()
    life = request.expires_in_seconds
    key = await asked.services.call(
        asked.services.store.rotate_key,
        asked.path_text("prefix"),
        successor=made.prefix,
        digest=made.digest,
        overlap_ms=round(request.overlap_seconds * 1000),
        life_ms=None if life is None else round(life * 1000),
    )
    return _made(key, text=made.text)


async def list_keys(asked: Asked) -> Response:
    return answer(
        schemas.ApiKeyList(keys=[_shown(key) for key in await asked.services.call(asked.services.store.keys)])
    )


async def revoke_key(asked: Asked) -> Response:
    key = await asked.services.call(asked.services.store.revoke_key, asked.path_text("prefix"))
    return answer(_shown(key))


async def create_tenant(asked: Asked) -> Response:
    request = await read_struct(asked, schemas.TenantRequest)
    made = await asked.services.call(asked.services.store.create_tenant, request.name, weight=request.weight)
    return answer(schemas.Tenant(name=made.name, weight=made.weight), status=201, location="/v1/tenants")


async def list_tenants(asked: Asked) -> Response:
    found = await asked.services.call(asked.services.store.tenants)
    return answer(
        schemas.TenantList(tenants=[schemas.Tenant(name=tenant.name, weight=tenant.weight) for tenant in found])
    )


def _made(key: ApiKey, *, text: str) -> Response:
    """A new key, shown this once."""
    shown = _shown(key)
    fields = {name: getattr(shown, name) for name in schemas.ApiKey.__struct_fields__}
    response = answer(schemas.CreatedApiKey(**fields, key=text), status=201, location=f"/v1/keys/{key.prefix}")
    response.headers["cache-control"] = "no-store"
    return response


def _shown(key: ApiKey) -> schemas.ApiKey:
    return schemas.ApiKey(
        prefix=key.prefix,
        tenant=key.tenant,
        name=key.name,
        scopes=list(key.scopes),
        created_at=rfc3339(key.created_at_ms),
        expires_at=optional_rfc3339(key.expires_at_ms),
        revoked_at=optional_rfc3339(key.revoked_at_ms),
        replaced_by=key.replaced_by,
    )


CALLS = (
    Call(
        method="POST",
        path="/v1/keys",
        summary="Make an API key; it is shown this once",
        tag="administration",
        handler=create_key,
        links={"/prefix": "/v1/keys/{prefix}"},
        scope="admin",
        body=schemas.KeyRequest,
        status=201,
        answer=schemas.CreatedApiKey,
        errors=(InvalidRequest, NotFound),
    ),
    Call(
        method="GET",
        path="/v1/keys",
        summary="List API keys",
        tag="administration",
        handler=list_keys,
        scope="admin",
        answer=schemas.ApiKeyList,
    ),
    Call(
        method="POST",
        path="/v1/keys/{prefix}/rotate",
        summary="Make the key that takes the place of another; it is shown this once",
        about="It has the same tenant, name and scopes. Both are valid for `overlap_seconds`, so that whoever uses the "
        "old one can change to the new one without a pause; then the old one has expired.",
        tag="administration",
        handler=rotate_key,
        scope="admin",
        body=schemas.KeyRotation,
        body_required=False,
        status=201,
        answer=schemas.CreatedApiKey,
        errors=(InvalidRequest, NotFound, Conflict),
    ),
    Call(
        method="DELETE",
        path="/v1/keys/{prefix}",
        summary="Revoke an API key",
        about="Every API process refuses it within five seconds. Revoking again changes nothing.",
        tag="administration",
        handler=revoke_key,
        scope="admin",
        answer=schemas.ApiKey,
        errors=(NotFound,),
    ),
    Call(
        method="POST",
        path="/v1/tenants",
        summary="Make a tenant",
        tag="administration",
        handler=create_tenant,
        scope="admin",
        body=schemas.TenantRequest,
        status=201,
        answer=schemas.Tenant,
        errors=(InvalidRequest, Conflict),
    ),
    Call(
        method="GET",
        path="/v1/tenants",
        summary="List tenants",
        tag="administration",
        handler=list_tenants,
        scope="admin",
        answer=schemas.TenantList,
    ),
)
