"""Errors as RFC 9457 problem documents: one function for the raw routes and the router's."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from batchyard.errors import BatchyardError, ServerError
from batchyard.telemetry import log_event

MEDIA_PROBLEM = b"application/problem+json"

Send = Callable[[Any], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_encode = msgspec.json.Encoder(enc_hook=str).encode
log = logging.getLogger(__name__)


def as_error(failure: BaseException) -> BatchyardError:
    """Our own errors as they are; anything else is logged and becomes a ServerError that tells nothing more."""
    if isinstance(failure, BatchyardError):
        return failure
    log_event(log, "request_failed", level=logging.ERROR, error=failure)
    return ServerError("something went wrong inside the server; its log has the details")


def problem(error: BatchyardError) -> dict[str, Any]:
    """The members of the problem document, see `batchyard.schemas.Problem`."""
    return {
        "type": f"urn:batchyard:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "detail": error.public,
        "code": error.code,
        "retryable": error.retryable,
        **error.details,
    }


def render(failure: BaseException) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer to a request that failed."""
    error = as_error(failure)
    body = _encode(problem(error))
    headers = [(b"content-type", MEDIA_PROBLEM), (b"content-length", str(len(body)).encode())]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_seconds)).encode()))
    elif error.retryable:
        headers.append((b"retry-after", b"1"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return error.status, headers, body


async def answer(send: Send, failure: BaseException) -> None:
    """Send the answer to a request that failed, over raw ASGI."""
    status, headers, body = render(failure)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
