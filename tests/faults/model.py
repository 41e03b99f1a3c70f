"""The model of the fault suite: its answer names its own input, so that a crossed result shows."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

from batchyard.errors import InvalidInput, RetryableModelError
from batchyard.model import Model

SECONDS_PER_JOB = 0.002
SLOW_SECONDS = 0.25


def answer(token: str) -> dict[str, Any]:
    """The one right result of the input with this token."""
    return {"token": token, "sum": zlib.crc32(token.encode())}


def deed(token: str) -> str:
    """What an input asks for, the first word of its token: `echo`, `slow`, `busy` (a retryable failure), `invalid`."""
    return token.partition("-")[0]


class Keyed(Model):
    """Answers `{"token": T}` with `answer(T)`, after doing what the token asks for."""

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        return [_admitted(item["token"]) for item in inputs]

    def forward(self, items: Sequence[str]) -> Sequence[Any]:
        slow = sum(deed(token) == "slow" for token in items)
        time.sleep(SECONDS_PER_JOB * len(items) + SLOW_SECONDS * min(slow, 4))
        return [answer(token) for token in items]


def _admitted(token: str) -> str | Exception:
    match deed(token):
        case "busy":
            return RetryableModelError("as asked")
        case "invalid":
            return InvalidInput("as asked")
        case _:
            return token
