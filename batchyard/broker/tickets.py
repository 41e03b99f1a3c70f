"""What a ticket is: a broker message that names a queue and up to 128 jobs that may be claimed there.

A ticket is a hint and is revalidated against the database, so a forged one is a spurious wake-up and a lost one is
published again. The envelope is Celery's protocol version 2, in JSON, so that Celery's tools can read it.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from batchyard.jobs import Lane, runs

TASK_NAME = "batchyard.ticket"
"""The task name in the envelope."""

TICKET_JOBS = 128
"""Jobs that one ticket names while nobody knows how long they take."""

MOST_TICKET_JOBS = 512
"""Jobs that one ticket names at most: a consumer spends as long on a message of few as on one of many."""

TICKET_BYTES = 16 * 1024
"""A body above this is not read."""

CONTENT_TYPE = "application/json"
CONTENT_ENCODING = "utf-8"


class Ticket(NamedTuple):
    """The jobs of one message, in the order in which they should be claimed."""

    queue_id: int
    ids: Sequence[int]


def cut_tickets(queue_id: int, ids: Sequence[int], *, jobs: int = TICKET_JOBS) -> list[Ticket]:
    """Tickets for these jobs, in this order, of at most so many jobs each."""
    return [Ticket(queue_id, piece) for piece in runs(ids, jobs)]


def queue_name(model: str, version: str, lane: Lane) -> str:
    """The name of a queue in the broker."""
    return f"batchyard.{model}@{version}.{lane.word}"


_JobId = Annotated[int, msgspec.Meta(gt=0, le=(1 << 63) - 1)]


class _Arguments(msgspec.Struct, forbid_unknown_fields=True):
    queue: Annotated[int, msgspec.Meta(gt=0, le=(1 << 31) - 1)]
    ids: Annotated[list[_JobId], msgspec.Meta(min_length=1, max_length=MOST_TICKET_JOBS)]


_NoArguments = Annotated[list[None], msgspec.Meta(max_length=0)]
_Body = tuple[_NoArguments, _Arguments, dict[str, None]]
_BODY = msgspec.json.Decoder(_Body)
_EMBED: Mapping[str, None] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def encode_ticket(ticket: Ticket) -> bytes:
    """The body of the message. At most MOST_TICKET_JOBS ids."""
    ids = ticket.ids if isinstance(ticket.ids, list) else list(ticket.ids)  # msgspec knows no ranges
    return msgspec.json.encode(((), {"queue": ticket.queue_id, "ids": ids}, _EMBED))


def decode_ticket(body: bytes | str | memoryview) -> Ticket | None:
    """Read the body of a message; None, never an exception, for anything but a ticket."""
    if len(body) > TICKET_BYTES:
        return None
    try:
        _, arguments, _ = _BODY.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Ticket(arguments.queue, arguments.ids)


def ticket_headers(ticket: Ticket, *, message_id: str) -> dict[str, Any]:
    """Celery's protocol version 2 headers."""
    return {
        "lang": "py",
        "task": TASK_NAME,
        "id": message_id,
        "root_id": message_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": (None, None),
        "ignore_result": True,
        "argsrepr": "()",
        "kwargsrepr": f"{{'queue': {ticket.queue_id}, 'jobs': {len(ticket.ids)}}}",
        "origin": f"{os.getpid()}@{_HOST}",
    }


def redis_message(ticket: Ticket, *, name: str) -> bytes:
    """The whole message as kombu's Redis transport stores it in its list.

    The body stands in it as text (`body_encoding` utf-8, which kombu reads as it is) rather than in base64: a third
    less memory in the broker, and no decoding at either end.
    """
    message_id = str(uuid.uuid4())
    return msgspec.json.encode(
        {
            "body": encode_ticket(ticket).decode(),
            "content-encoding": CONTENT_ENCODING,
            "content-type": CONTENT_TYPE,
            "headers": ticket_headers(ticket, message_id=message_id),
            "properties": {
                "correlation_id": message_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": name},
                "priority": 0,
                "body_encoding": "utf-8",
                "delivery_tag": message_id,
            },
        }
    )


_HOST = socket.gethostname()
