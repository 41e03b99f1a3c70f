"""Payloads: bytes that inputs refer to, streamed in and out."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response, StreamingResponse

from batchyard import schemas
from batchyard.errors import InvalidRequest, NotFound, OverQuota, TooLarge
from batchyard.jobs import format_id
from batchyard.payloads import Stored, location_of
from batchyard.store.base import PayloadInfo
from batchyard_producer.bodies import chunks
from batchyard_producer.calls import Asked, Call, answer

DEFAULT_TYPE = "application/octet-stream"
PIECE_BYTES = 256 * 1024
"""Handed to the object store at once, so that few hops to a thread are made."""


async def upload(asked: Asked) -> Response:
    services = asked.services
    content_type = asked.request.headers.get("content-type", DEFAULT_TYPE)
    if len(content_type) > 255 or not content_type.isascii() or not content_type.isprintable():
        raise InvalidRequest("the Content-Type must be at most 255 printable ASCII characters")
    services.catalog.limiter.take_bytes(asked.tenant_id, _declared_bytes(asked))
    number = services.payload_ids.take(1, now_ms=services.store.now_ms())[0]
    location = location_of(number, tenant_id=asked.tenant_id)
    await services.call(services.store.expect_payload, number, location=location)
    stored = await _receive(asked, location)
    info = PayloadInfo(
        id=number,
        tenant_id=asked.tenant_id,
        content_type=content_type,
        size=stored.size,
        digest=stored.digest,
        location=location,
    )
    # Where this fails, the row may be there all the same: the bytes stay, and are deleted as what nobody refers to.
    await services.call(services.store.add_payload, info)
    return answer(_shown(info), status=201, location=f"/v1/payloads/{format_id(number)}")


def _declared_bytes(asked: Asked) -> int:
    """What the caller says is coming; what comes without a word is counted with the next sums."""
    declared = asked.request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdecimal() and len(declared) < 20 else 1


async def _receive(asked: Asked, location: str) -> Stored:
    """Stream the body into the object store; nothing stays behind where it breaks off."""
    services, max_bytes = asked.services, asked.services.settings.server.max_payload_bytes
    target = await services.call(services.objects.create, location, max_bytes=max_bytes)
    try:
        pending = bytearray()
        async for chunk in chunks(asked.request, max_bytes=max_bytes):
            pending += chunk
            if len(pending) >= PIECE_BYTES:
                await services.call(target.write, bytes(pending))
                pending.clear()
        if pending:
            await services.call(target.write, bytes(pending))
        return await services.call(target.commit)
    except BaseException:
        await services.call(target.discard)
        raise


async def download(asked: Asked) -> Response:
    number = asked.path_id("payload")
    found = await asked.services.call(asked.services.store.get_payloads, [number])
    own = [info for info in found if info.tenant_id == asked.tenant_id]
    if not own:
        raise NotFound(f"there is no payload {format_id(number)}")
    pieces: Iterator[bytes] = await asked.services.call(asked.services.objects.chunks, own[0].location)
    headers = {
        "content-length": str(own[0].size),
        # What was uploaded may be a page: a browser must not run it as one of ours.
        "content-disposition": f'attachment; filename="{format_id(number)}"',
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
        "repr-digest": f"sha-256=:{base64.b64encode(own[0].digest).decode()}:",
    }
    return StreamingResponse(iterate_in_threadpool(pieces), media_type=own[0].content_type, headers=headers)


def _shown(info: PayloadInfo) -> schemas.Payload:
    return schemas.Payload(
        id=format_id(info.id), content_type=info.content_type, size=info.size, sha256=info.digest.hex()
    )


CALLS = (
    Call(
        method="POST",
        path="/v1/payloads",
        summary="Upload bytes that inputs can refer to",
        about='Name them as `{"$payload": id}` anywhere inside an input; the model sees bytes in that place. They are '
        "kept as long as any job that refers to them, and for `retention.payload_seconds` (a day) in any case, unless "
        "the last such job is forgotten.",
        tag="payloads",
        handler=upload,
        links={"/id": "/v1/payloads/{id}"},
        body_media=("*/*",),
        status=201,
        answer=schemas.Payload,
        errors=(InvalidRequest, TooLarge, OverQuota),
    ),
    Call(
        method="GET",
        path="/v1/payloads/{id}",
        summary="The bytes of a payload",
        tag="payloads",
        handler=download,
        answer_media=("*/*",),
        answer_about="As uploaded, with their content type",
        errors=(NotFound,),
    ),
)
