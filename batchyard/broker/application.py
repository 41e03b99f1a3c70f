"""The Celery application that consumers run in."""

from __future__ import annotations

from typing import Any

import kombu
from celery import Celery
from celery.app.amqp import AMQP

from batchyard.broker.kombu_wire import HEARTBEAT_SECONDS, MEMORY_POLL_SECONDS, ticket_queue

SOCKET_TIMEOUT_SECONDS = 2.0
"""Above the second that kombu's BRPOP blocks on the server."""

RECONNECT_SECONDS = 1


class _Connection(kombu.Connection):
    """On Redis it has our transport, and no other connection of the process does.

    An alias of kombu's would be the whole process's, and would do nothing where a Redis connection was made before:
    kombu keeps what a scheme first meant.
    """

    def get_transport_cls(self) -> Any:
        if self.transport_cls in ("redis", "rediss"):
            from batchyard.broker.celery_transport import Transport

            return Transport
        return super().get_transport_cls()  # type: ignore[no-untyped-call]


class _Amqp(AMQP):
    Connection = _Connection


def celery_app(url: str) -> Celery:
    """A Celery application for a consumer: it carries tickets and Celery's own control and events, nothing else.

    What `worker.py` can count on:

    - JSON alone is accepted, there is no result backend, and no task is registered: tickets are read by a ConsumerStep
      from `consumer_queue(name, url)`, each queue on a channel of its own, and decoded by
      `decode_ticket(message.body)`, which answers None for anything malformed (acknowledge and count those).
    - On Redis `ack_emulation` is off: an acknowledgement costs nothing and an unacknowledged ticket is lost with its
      consumer, which re-ticketing and the idle claim make good. What is no kombu message at all is dropped below the
      consumer, by `celery_transport`.
    - On RabbitMQ the queues are quorum queues: they have no global QoS, so set `prefetch_count` per consumer.
    - Reconnecting never gives up, and begins a second after the broker is back at the latest.
    """
    app = Celery("batchyard", broker=url, amqp=_Amqp, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        broker_transport_options=_transport_options(url),
        broker_connection_timeout=SOCKET_TIMEOUT_SECONDS,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,
        broker_heartbeat=HEARTBEAT_SECONDS,
        broker_pool_limit=2,
        # No task of ours is ever sent to it; a name of its own keeps us from taking another application's tasks.
        task_default_queue="batchyard.tasks",
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_pool="threads",
        worker_concurrency=1,
    )
    return app


def consumer_queue(name: str, url: str) -> Any:
    """The kombu queue to consume for a broker name, declared as the publisher declares it."""
    return ticket_queue(name, transport="amqp" if url.startswith(("amqp", "pyamqp")) else "virtual")


def _transport_options(url: str) -> dict[str, Any]:
    if url.startswith("redis"):
        return {
            "ack_emulation": False,
            "priority_steps": [0],
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 5,
        }
    if url.startswith("memory"):
        return {"polling_interval": MEMORY_POLL_SECONDS}
    return {"read_timeout": SOCKET_TIMEOUT_SECONDS, "write_timeout": SOCKET_TIMEOUT_SECONDS}
