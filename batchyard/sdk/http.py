"""Performing steps over HTTP, with and without asyncio. httpx is imported when the first client is made."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from batchyard.configuration.faults import redacted
from batchyard.errors import BatchyardError, ConnectionFailed, InvalidRequest
from batchyard.sdk.steps import Pause, Request, Response, Step, Steps, problem_of

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8080"


class Transport(Protocol):
    """Performs requests. Thread-safe. Raises ConnectionFailed where no answer came; a refusal is answered with its
    problem document, or raised."""

    def send(self, request: Request) -> Response: ...

    def stream(self, request: Request) -> AbstractContextManager[Iterator[bytes]]:
        """A context manager that gives the answer's body in pieces; raises the typed error of a refusal."""

    def close(self) -> None: ...


def drive(steps: Steps[T], perform: Callable[[Step], Any]) -> T:
    """Perform the steps of one call in this thread; an error that `perform` raises is thrown into them."""
    try:
        step = next(steps)
        while True:
            try:
                answer = perform(step)
            except BatchyardError as failure:
                step = steps.throw(failure)
            else:
                step = steps.send(answer)
    except StopIteration as done:
        value: T = done.value
        return value


async def adrive(steps: Steps[T], perform: Callable[[Step], Awaitable[Any]]) -> T:
    """Perform the steps of one call in this task; an error that `perform` raises is thrown into them."""
    try:
        step = next(steps)
        while True:
            try:
                answer = await perform(step)
            except BatchyardError as failure:
                step = steps.throw(failure)
            else:
                step = steps.send(answer)
    except StopIteration as done:
        value: T = done.value
        return value


def perform(step: Step, transport: Transport) -> Response | None:
    """The steps of ordinary calls: requests and pauses."""
    if isinstance(step, Request):
        return transport.send(step)
    assert isinstance(step, Pause)
    time.sleep(step.seconds)
    return None


async def aperform(step: Step, transport: AsyncHttp) -> Response | None:
    """The steps of ordinary calls: requests and pauses."""
    if isinstance(step, Request):
        return await transport.send(step)
    assert isinstance(step, Pause)
    await asyncio.sleep(step.seconds)
    return None


class Endpoint:
    """Where the API is and how to speak to it; common to both transports."""

    def __init__(self, url: str | None, *, api_key: str | None, timeout_seconds: float) -> None:
        self.url = (url or os.environ.get("BATCHYARD_URL") or DEFAULT_URL).rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidRequest(f'the URL "{redacted(self.url)}" is not one of HTTP; such as {DEFAULT_URL}')
        self._api_key = api_key or os.environ.get("BATCHYARD_API_KEY") or None
        self._timeout_seconds = timeout_seconds
        self._is_loopback = parts.hostname in {"localhost", "::1"} or parts.hostname.startswith("127.")

    def options(self) -> dict[str, Any]:
        headers = {"User-Agent": f"batchyard/{metadata.version('batchyard')}"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return {
            "base_url": self.url,
            "headers": headers,
            "follow_redirects": False,
            # A proxy of the environment would look for the API on its own loopback.
            "trust_env": not self._is_loopback,
        }

    def arguments(self, request: Request) -> dict[str, Any]:
        import httpx

        headers = {"Accept": request.accept}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        if request.idempotency_key is not None:
            headers["Idempotency-Key"] = request.idempotency_key
        return {
            "method": request.method,
            "url": request.path,
            "params": dict(request.query) or None,
            "content": request.body,
            "headers": headers,
            "timeout": httpx.Timeout(self._timeout_seconds, read=self._timeout_seconds + request.wait_seconds),
        }

    def failed(self, request: Request, error: Exception) -> ConnectionFailed:
        reason = str(error) or type(error).__name__
        return ConnectionFailed(
            f"no answer from the API at {redacted(self.url)} to {request.method} {request.path}: {reason}; "
            "is it running (batchyard up), and is the URL right (BATCHYARD_URL)?"
        )


def _response(answer: httpx.Response, body: bytes) -> Response:
    retry_after = answer.headers.get("Retry-After", "")
    return Response(
        status=answer.status_code,
        body=body,
        content_type=answer.headers.get("Content-Type", "").partition(";")[0].strip().lower(),
        retry_after_seconds=float(retry_after) if retry_after.isdigit() else None,
    )


class Http:
    """The synchronous transport."""

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx

        self._endpoint = endpoint
        self._client = httpx.Client(**endpoint.options(), limits=httpx.Limits(max_connections=None))
        self._errors = httpx.TransportError

    def send(self, request: Request) -> Response:
        try:
            answer = self._client.request(**self._endpoint.arguments(request))
        except self._errors as error:
            raise self._endpoint.failed(request, error) from error
        return _response(answer, answer.content)

    @contextmanager
    def stream(self, request: Request) -> Iterator[Iterator[bytes]]:
        try:
            with self._client.stream(**self._endpoint.arguments(request)) as answer:
                if answer.status_code >= 400:
                    raise problem_of(_response(answer, answer.read()))
                yield answer.iter_raw()
        except self._errors as error:
            raise self._endpoint.failed(request, error) from error

    def close(self) -> None:
        self._client.close()


class AsyncHttp:
    """The asynchronous transport. Owned by one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        import httpx

        self._endpoint = endpoint
        self._client = httpx.AsyncClient(**endpoint.options(), limits=httpx.Limits(max_connections=None))
        self._errors = httpx.TransportError

    async def send(self, request: Request) -> Response:
        try:
            answer = await self._client.request(**self._endpoint.arguments(request))
        except self._errors as error:
            raise self._endpoint.failed(request, error) from error
        return _response(answer, answer.content)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            async with self._client.stream(**self._endpoint.arguments(request)) as answer:
                if answer.status_code >= 400:
                    raise problem_of(_response(answer, await answer.aread()))
                yield answer.aiter_raw()
        except self._errors as error:
            raise self._endpoint.failed(request, error) from error

    async def close(self) -> None:
        await self._client.aclose()
