"""Webhooks as their receivers see them: events, signatures by Standard Webhooks, and when a delivery is tried again.

    event = batchyard.webhooks.verify(body, headers, secret)

A message carries three headers: `webhook-id`, the same at every attempt, by which a receiver knows a message again;
`webhook-timestamp`, the Unix seconds of the attempt; and `webhook-signature`, one `v1,BASE64` for each valid secret,
which is the HMAC-SHA256 of `id.timestamp.body`. Pure but for the operating system's randomness and clock.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from batchyard.errors import InvalidRequest, Unauthorized
from batchyard.jobs import State, format_id

SECRET_PREFIX = "whsec_"
TOLERANCE_SECONDS = 300.0
"""How old, or how far ahead, a message may be by the receiver's clock: what was recorded cannot be played back."""

JITTER = 0.2
"""Of a delay: by up to this part it is shorter or longer, so that receivers that were away are not met by all at once.
"""

MAX_ASKED_SECONDS = 24 * 3600.0


class Event(IntEnum):
    """What a webhook may hear of. The number is what the database stores, and the bit of an endpoint's choice."""

    JOB_SUCCEEDED = 0
    JOB_FAILED = 1
    JOB_CANCELLED = 2
    JOB_EXPIRED = 3
    BULK_FINISHED = 4

    @property
    def word(self) -> str:
        """As the API and messages write it: "job.succeeded"."""
        return self.name.lower().replace("_", ".")


FIRST_TERMINAL = int(State.SUCCEEDED)
"""The event of a job that ended is its state less this."""

_BY_WORD = {event.word: event for event in Event}
ALL_EVENTS = tuple(_BY_WORD)


def pack_events(words: Iterable[str]) -> int:
    """A choice of events as bits; the words are those of `ALL_EVENTS`."""
    return sum(1 << _BY_WORD[word] for word in set(words))


def unpack_events(bits: int) -> tuple[str, ...]:
    return tuple(event.word for event in Event if bits >> event & 1)


# --- signatures -------------------------------------------------------------------------------------------------------


def new_secret() -> str:
    """192 random bits."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()


def message_id(subject_id: int) -> str:
    """The `webhook-id` of what is told of a job or a bulk: each ends once, so there is one."""
    return f"msg_{format_id(subject_id)}"


def sign(body: bytes, *, message: str, timestamp: int, valid: Sequence[str]) -> dict[str, str]:
    """The headers of a message, signed with every valid secret; `timestamp` in Unix seconds."""
    signatures = " ".join(_signature(secret, body, message=message, timestamp=str(timestamp)) for secret in valid)
    return {"webhook-id": message, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now_seconds: float | None = None,
) -> dict[str, Any]:
    """The event that a message tells of, as a dictionary, where it was signed with the secret, or one of several.

    `body` are the bytes as they came, and `headers` those of the request in any spelling. Raises Unauthorized where a
    header is missing, the message is too old or too far ahead, or no signature fits. The same message may come twice:
    keep the `webhook-id` of those that were dealt with.
    """
    given = {name.lower(): value for name, value in headers.items()}
    message, timestamp, signatures = (given.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    if not (message and timestamp and signatures):
        raise Unauthorized("a webhook has the headers webhook-id, webhook-timestamp and webhook-signature")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise Unauthorized(f"webhook-timestamp must be Unix seconds, not {timestamp[:40]!r}")
    now = time.time() if now_seconds is None else now_seconds
    if abs(now - int(timestamp)) > tolerance_seconds:
        raise Unauthorized(
            f"the message is of another time: its webhook-timestamp is {int(timestamp) - now:+.0f} s from now, and at "
            f"most {tolerance_seconds:g} s are allowed"
        )
    known = [secret] if isinstance(secret, str) else secret
    wanted = [_signature(each, body, message=message, timestamp=timestamp) for each in known]
    # Every pair is compared, each in constant time.
    fits = [hmac.compare_digest(one.encode(), each.encode()) for one in signatures.split(" ") for each in wanted]
    if not any(fits):
        raise Unauthorized("no webhook-signature fits: the body was changed, or it was signed with another secret")
    event: dict[str, Any] = json.loads(body)
    return event


def _signature(secret: str, body: bytes, *, message: str, timestamp: str) -> str:
    signed = b".".join((message.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f'a webhook secret is "{SECRET_PREFIX}" and base 64; this one is not') from error


# --- attempts ---------------------------------------------------------------------------------------------------------


def retry_in_seconds(
    attempts: int, *, delays: Sequence[float], chance: float, asked_seconds: float | None = None
) -> float | None:
    """Seconds until the next attempt after `attempts` failed ones; None where that was the last.

    `delays` are those between attempts; `chance`, from 0 to 1, places the delay within its jitter. A receiver that
    asked for more time (Retry-After) gets it, up to a day.
    """
    if attempts > len(delays):
        return None
    jittered = delays[attempts - 1] * (1 - JITTER + 2 * JITTER * chance)
    return jittered if asked_seconds is None else max(jittered, min(asked_seconds, MAX_ASKED_SECONDS))
