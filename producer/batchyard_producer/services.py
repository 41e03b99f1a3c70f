"""What the routes of one API process work with."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from batchyard.catalog import Catalog
from batchyard.jobs import IdSource
from batchyard.payloads import ObjectStore
from batchyard.redriving import Redriver
from batchyard.settings import Settings
from batchyard.store.base import JobStore
from batchyard.submission import Submitter
from batchyard.telemetry import ApiMetrics
from batchyard_producer.auth import Gate
from batchyard_producer.group_commit import GroupCommit
from batchyard_producer.intake import Room
from batchyard_producer.readiness import Readiness

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

P = ParamSpec("P")
T = TypeVar("T")


class BrokerState(Protocol):
    """The part of the broker that readiness and status look at."""

    @property
    def is_up(self) -> bool: ...


class Leadership(Protocol):
    """The part of the dispatcher that readiness and status look at."""

    @property
    def is_leader(self) -> bool | None:
        """None while the database has not said yet who leads."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Made once per process; each member says from which threads it may be used."""

    settings: Settings
    store: JobStore
    broker: BrokerState
    dispatcher: Leadership
    catalog: Catalog
    submitter: Submitter
    redriver: Redriver
    commit: GroupCommit
    """Owned by the event loop."""
    gate: Gate
    objects: ObjectStore
    payload_ids: IdSource
    """Owned by the event loop."""
    registry: CollectorRegistry
    metrics: ApiMetrics
    readiness: Readiness
    """Owned by the event loop."""
    room: Room
    """For the bodies of requests."""
    threads: ThreadPoolExecutor
    """For everything that blocks: the loop never does."""

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what blocks in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, functools.partial(function, *args, **kwargs))
