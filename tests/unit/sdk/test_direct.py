"""`Client.direct` over a store in memory: what it knows of the models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batchyard.broker import Broker
from batchyard.client import Client
from batchyard.errors import UnknownModel
from batchyard.payloads import open_objects
from batchyard.sdk.direct import Direct
from batchyard.settings import Settings
from batchyard.store.base import JobStore, ModelConfig
from batchyard.testing import memory_store


class Yard:
    """A direct client that hears of changes only when it asks."""

    def __init__(self, store: JobStore, folder: Path) -> None:
        settings = Settings(state_dir=folder)
        self.refreshes = 0
        self.direct = Direct(settings, store=store, broker=Broker("memory://"), objects=open_objects(settings))
        self.direct.start()
        self.client = Client.__new__(Client)
        self.client._transport, self.client._retry_seconds = self.direct, 0.0
        self._store = store
        refresh = self.direct._catalog.refresh

        def counted(*, older_than_seconds: float = 0.0) -> None:
            self.refreshes += not older_than_seconds
            refresh(older_than_seconds=older_than_seconds)

        self.direct._catalog.refresh = counted  # type: ignore[method-assign]

    def register(self, model: str) -> None:
        self._store.sync_models([ModelConfig(model=model, version="1", runtime="tests:Echo")])


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    monkeypatch.setattr("batchyard.catalog.REFRESH_SECONDS", 3600.0)
    made = Yard(memory_store(), tmp_path)
    with made.client:
        yield made


CALLS: dict[str, Callable[[Client, str], object]] = {
    "submit": lambda client, model: client.submit(model, 1),
    "submit_many": lambda client, model: client.submit_many(model, [1, 2]),
    "bulk": lambda client, model: client.bulk(model),
    "jobs": lambda client, model: list(client.jobs(model=model)),
    "model": lambda client, model: client.model(model),
    "pause": lambda client, model: client.pause(model),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_model_registered_just_now_is_known(yard: Yard, call: Callable[[Client, str], object]) -> None:
    yard.register("fresh")

    call(yard.client, "fresh")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_unknown_model_is_looked_for_once(yard: Yard, call: Callable[[Client, str], object]) -> None:
    yard.register("fresh")

    with pytest.raises(UnknownModel, match='did you mean "fresh"'):
        call(yard.client, "frehs")

    assert yard.refreshes == 1


def test_a_known_model_is_not_looked_for(yard: Yard) -> None:
    yard.register("fresh")
    yard.client.submit("fresh", 1)
    before = yard.refreshes

    yard.client.submit("fresh", 2)

    assert yard.refreshes == before == 1
