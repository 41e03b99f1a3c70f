"""An API process over a store in memory, spoken to over ASGI without a socket."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from batchyard.broker import Broker
from batchyard.jobs import Lane, Outcome, State
from batchyard.settings import ModelSettings, PoolSettings, ServerSettings, Settings
from batchyard.store.base import JobStore
from batchyard.testing import memory_store
from batchyard_producer.app import Api
from batchyard_producer.dispatcher import Timing
from tests.unit.producer import contract


class Served(httpx.AsyncClient):
    """A client of one API process, with that process's store at hand."""

    store: JobStore

    def finish(self, ids: Sequence[str], *, body: bytes = b"1", state: State = State.SUCCEEDED) -> None:
        """Do what a consumer does: claim these jobs and write their outcomes."""
        numbers = [int(text, 16) for text in ids]
        [view, *_] = self.store.get_jobs(numbers, tenant_id=1, results=False)
        owner = self.store.register_consumer(
            pool="local",
            host="h",
            pid=1,
            device="cpu",
            capacity="on_demand",
            queue_ids=[view.queue_id],
            lease_ms=30_000,
        )
        claimed = self.store.claim([(view.queue_id, numbers)], owner=owner)
        outcomes = [Outcome(job, state, body, cost=3, device_us=5) for job in claimed]
        assert len(self.store.finish(outcomes, owner=owner)) == len(ids)
        self.store.deregister(owner)


Serve = Callable[..., AbstractAsyncContextManager[Served]]

MODELS = (
    ModelSettings(name="echo", runtime="tests:Echo"),
    ModelSettings(name="twin", runtime="tests:Echo", version="1"),
    ModelSettings(name="twin", runtime="tests:Echo", version="2", lane=Lane.TOLERANT),
)
POOLS = (PoolSettings(name="local", models=("echo",)), PoolSettings(name="spot", models=("twin",), capacity="spot"))


@asynccontextmanager
async def serving(
    folder: Path, server: ServerSettings | None = None, *, timing: Timing | None = None
) -> AsyncIterator[Served]:
    """Serve until the block ends; the client speaks as a caller on loopback."""
    settings = Settings(state_dir=folder, server=server or ServerSettings(), models=MODELS, pools=POOLS)
    store, broker = memory_store(), Broker("memory://")
    process = Api(settings, store=store, broker=broker, timing=timing)
    await process.start()
    transport = httpx.ASGITransport(cast("Any", process.application), raise_app_exceptions=False)
    hooks: dict[str, Any] = {"response": [contract.check]}
    try:
        async with Served(transport=transport, base_url="http://localhost", event_hooks=hooks) as client:
            client.store = store
            yield client
    finally:
        await process.stop()
        await asyncio.to_thread(broker.close)
        await asyncio.to_thread(store.close)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serves with given settings of the server, and timing of the dispatcher."""
    return partial(serving, tmp_path)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    """An API of the test's own."""
    async with serving(tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
async def shared_api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One API for all tests of a module that leave nothing behind which others could see."""
    async with serving(tmp_path_factory.mktemp("shared")) as client:
        yield client
