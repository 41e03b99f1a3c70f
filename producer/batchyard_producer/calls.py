"""One call of the HTTP API: what it is asked, what it answers, and who handles it.

The routes and the OpenAPI document are both made from these records, so neither can know a call that the other lacks.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from batchyard import rendering
from batchyard.errors import BatchyardError, InvalidRequest, MethodNotAllowed, NotFound
from batchyard.jobs import parse_id
from batchyard_producer import problems
from batchyard_producer.auth import LOCAL, Identity
from batchyard_producer.services import Services

MEDIA_JSON = "application/json"

Handler = Callable[["Asked"], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of the query, or a header; what stands in the path needs no more than its name there."""

    name: str
    about: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    place: Literal["query", "header"] = "query"


IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    about="So that a repeated request makes nothing twice: the same body is answered as before, another refused",
    schema={"type": "string", "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    place="header",
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call; without a handler it is one of the hot ones, which are served in front of the router."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    """As OpenAPI writes it: `/v1/jobs/{id}`."""
    summary: str
    about: str = ""
    tag: str
    handler: Handler | None
    scope: str | None = "jobs"
    """What the caller's key must allow; None: open to all."""
    parameters: tuple[Parameter, ...] = ()
    body: type[msgspec.Struct] | None = None
    body_media: tuple[str, ...] = (MEDIA_JSON,)
    body_required: bool = True
    status: int = 200
    answer: Any = None
    """The struct that is answered, or a union of them; None: none, or bytes of `answer_media`."""
    answer_media: tuple[str, ...] = (MEDIA_JSON,)
    answer_about: str = ""
    more_answers: tuple[tuple[int, str, Any], ...] = ()
    """Other answers that are no problems: status, what it means, the struct."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Where the answer names something, as a JSON pointer → the path of what it names, such as `/v1/jobs/{id}`."""
    errors: tuple[type[BatchyardError], ...] = ()
    """Beyond those that every call may answer."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request on its way through a handler."""

    request: Request
    services: Services
    identity: Identity

    @property
    def tenant_id(self) -> int:
        return self.identity.tenant_id

    def path_text(self, name: str) -> str:
        text: str = self.request.path_params[name]
        return text

    def path_id(self, what: str) -> int:
        """The `{id}` of the path; NotFound where it is none."""
        number = parse_id(self.path_text("id"))
        if number is None:
            raise NotFound(f'there is no {what} "{self.path_text("id")[:64]}": an id has 16 hexadecimal digits')
        return number

    def query(self, *names: str) -> dict[str, str]:
        """The query's parameters; InvalidRequest for one that the call does not have, or given twice."""
        given: dict[str, str] = {}
        for name, value in self.request.query_params.multi_items():
            if name not in names:
                raise InvalidRequest(f'unknown query parameter "{name[:64]}"', allowed=sorted(names))
            if name in given:
                raise InvalidRequest(f'the query parameter "{name}" is given twice')
            given[name] = value
        return given

    @property
    def accept(self) -> str:
        return self.request.headers.get("accept", "")


def answer(
    document: object, *, status: int = 200, form: rendering.Form = "json", location: str | None = None
) -> Response:
    """A struct as the answer."""
    media = MEDIA_JSON if form == "json" else rendering.MEDIA_MSGPACK
    headers = {"location": location} if location else None
    return Response(rendering.encode(document, form), status_code=status, media_type=media, headers=headers)


def routes(calls: Sequence[Call], services: Services) -> list[Route]:
    """The calls as routes of the router, one per path; literal paths go before those with a name in them."""
    by_path: dict[str, dict[str, Call]] = {}
    for call in calls:
        by_path.setdefault(call.path, {})[call.method] = call
    paths = sorted(by_path, key=lambda path: path.count("{"))
    return [Route(path, Endpoint(by_path[path], services)) for path in paths]


class Endpoint:
    """The calls of one path, by method, as an ASGI application."""

    def __init__(self, calls: Mapping[str, Call], services: Services) -> None:
        self._calls = calls
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        call = self._calls.get("GET" if request.method == "HEAD" else request.method)
        response = (
            self._not_allowed(request) if call is None or call.handler is None else await self._run(call, request)
        )
        await response(scope, receive, send)

    async def _run(self, call: Call, request: Request) -> Response:
        assert call.handler is not None
        started = time.perf_counter()
        try:
            identity = LOCAL
            if call.scope is not None:
                identity = await self._services.gate.identify(request.scope["headers"], scope=call.scope)
            response = await call.handler(Asked(request=request, services=self._services, identity=identity))
        except ClientDisconnect:
            response = Response(status_code=499)  # as nginx counts a client that hung up
        except Exception as failure:  # noqa: BLE001  logged by `render` where it is no error of ours
            response = refusal(failure)
        elapsed = time.perf_counter() - started
        self._services.metrics.requests.count(call.method, call.path, response.status_code, elapsed)
        return response

    def _not_allowed(self, request: Request) -> Response:
        allowed = sorted(self._calls)
        response = refusal(MethodNotAllowed(f"{request.method} is not allowed here", allowed=allowed))
        response.headers["allow"] = ", ".join(allowed)
        return response


def refusal(failure: BaseException) -> Response:
    """The problem document of a failure."""
    status, headers, body = problems.render(failure)
    response = Response(body, status_code=status)
    response.raw_headers = headers
    return response
