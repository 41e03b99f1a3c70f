"""A call of the SDK as a generator: it yields what is to be done and is sent what came of it.

The logic of a call, with its retries, is written once and never touches a socket or a clock's sleep; a driver performs
the steps, with or without asyncio.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import msgspec

from batchyard.errors import BatchyardError, ConnectionFailed, QueueFull, RateLimited, Unavailable, from_problem
from batchyard.schemas import MEDIA_JSON

MEDIA_MSGPACK = "application/msgpack"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request to the API. Performed, it is answered with a Response, or ConnectionFailed is thrown in."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = MEDIA_JSON
    accept: str = MEDIA_JSON
    idempotency_key: str | None = None
    wait_seconds: float = 0.0
    """How much longer than usual the answer may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    status: int
    body: bytes
    content_type: str = MEDIA_JSON
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Take:
    """Answered with `Taken`: the next inputs, at most this many, fewer where they come slowly."""

    count: int


@dataclass(frozen=True, slots=True)
class Taken:
    inputs: list[Any]
    exhausted: bool


@dataclass(frozen=True, slots=True)
class Room:
    """Wait until this many more jobs may be in flight."""

    jobs: int


Step: TypeAlias = Request | Pause | Take | Room
Steps: TypeAlias = Generator[Step, Any, T]

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0


class Patience:
    """Decides, after each failure, how long to pause before the next try, or to give up.

    Gives up once failures have lasted `seconds` without a success between. A full queue, or a rate of the tenant's, is
    waited for without limit where `through_full` says so: the caller decides. Else a full queue is never waited for.
    """

    def __init__(self, seconds: float, *, through_full: bool = False) -> None:
        self._seconds = seconds
        self._through_full = through_full
        self.reset()

    def reset(self) -> None:
        """A call has succeeded."""
        self._failures = 0
        self._failing_since: float | None = None

    def pause_after(self, problem: BatchyardError) -> float | None:
        """Seconds to wait before trying again; None to give up."""
        if isinstance(problem, QueueFull | RateLimited) and self._through_full:
            return max(problem.retry_after_seconds or 1.0, 0.1) * random.uniform(1.0, 1.1)
        if not isinstance(problem, ConnectionFailed | Unavailable | RateLimited):
            return None
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._failures) * random.uniform(0.5, 1.0)
        pause = max(pause, min(problem.retry_after_seconds or 0.0, LONGEST_PAUSE_SECONDS))
        self._failures = min(self._failures + 1, 10)
        return pause if now + pause - self._failing_since <= self._seconds else None


def call(request: Request, patience: Patience) -> Steps[Response]:
    """Perform one request, trying again as long as the patience lasts; raises the typed error of a refusal.

    Only for requests that may be repeated: reads, and writes under an idempotency key.
    """
    while True:
        problem: BatchyardError
        try:
            response: Response = yield request
        except BatchyardError as failure:
            problem = failure
        else:
            if response.status < 400:
                patience.reset()
                return response
            problem = problem_of(response)
        pause = patience.pause_after(problem)
        if pause is None:
            raise problem
        yield Pause(pause)


def problem_of(response: Response) -> BatchyardError:
    """The typed error of an answer with status 400 or above, whoever gave it."""
    try:
        document = msgspec.json.decode(response.body)
    except msgspec.MsgspecError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"the server answered {response.status} without a problem document"}
    if response.retry_after_seconds is not None:
        document.setdefault("retry_after_seconds", response.retry_after_seconds)
    if response.status in {502, 504} and "code" not in document:
        return Unavailable(f"a proxy before the API answered {response.status}")
    return from_problem(document, status=response.status)
