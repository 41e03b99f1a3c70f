"""kombu's Redis transport for consumers, made to outlive what strangers may push into its lists."""

from __future__ import annotations

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis

from batchyard.logs import log_event

log = logging.getLogger(__name__)


class Channel(redis.Channel):
    def _brpop_read(self, **options: Any) -> Any:
        # A list item that is no message (not JSON, or JSON without the members of an envelope) raises out of the event
        # loop and would end the worker. The item is already off the list: to drop it is to reject it.
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log_event(log, "ticket_malformed", level=logging.WARNING, reason=repr(error))
            raise Empty from error

    def _receive_one(self, c: Any) -> Any:
        try:
            return super()._receive_one(c)  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log_event(log, "broadcast_malformed", level=logging.WARNING, reason=repr(error))
            raise Empty from error


class Transport(redis.Transport):
    Channel = Channel
