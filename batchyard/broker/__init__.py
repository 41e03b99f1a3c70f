"""The broker: tickets, depths, hints, the private Valkey, and the Celery application of the consumers.

Beside the consumers' `worker.py` the only room that imports Celery, kombu or redis, and it does so when first used.
"""

from batchyard.broker.client import Broker, pack_ids, safe_url, unpack_ids
from batchyard.broker.listening import Hints, Listener
from batchyard.broker.tickets import (
    MOST_TICKET_JOBS,
    TASK_NAME,
    TICKET_BYTES,
    TICKET_JOBS,
    Ticket,
    cut_tickets,
    decode_ticket,
    encode_ticket,
    queue_name,
)

__all__ = [
    "MOST_TICKET_JOBS",
    "TASK_NAME",
    "TICKET_BYTES",
    "TICKET_JOBS",
    "Broker",
    "Hints",
    "Listener",
    "Ticket",
    "cut_tickets",
    "decode_ticket",
    "encode_ticket",
    "pack_ids",
    "queue_name",
    "safe_url",
    "unpack_ids",
]
