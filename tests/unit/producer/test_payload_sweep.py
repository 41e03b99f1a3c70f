"""Bytes in the object store go when nobody needs them, and never before; over a real store in memory."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from batchyard.errors import Unavailable
from batchyard.jobs import Lane, PayloadReference
from batchyard.payloads import ObjectStore, location_of, open_objects
from batchyard.settings import RetentionSettings, Settings
from batchyard.store import payloads as store_payloads
from batchyard.store.base import PayloadInfo
from batchyard.telemetry import DispatcherMetrics, new_registry
from batchyard.testing import memory_store
from batchyard_producer import payload_sweep
from batchyard_producer.dispatcher import Timing
from batchyard_producer.payload_sweep import PayloadSweep
from tests.services.fleet import add_model, submit, until
from tests.unit.producer.conftest import Serve, Served

KEEP_SECONDS = 3600
DAY_SECONDS = 24 * 3600


class Clock:
    """The database's."""

    def __init__(self) -> None:
        self.seconds = 1_763_694_000

    def __call__(self) -> int:
        return self.seconds * 1000


class Rig:
    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store = memory_store(clock=self.clock)
        self.queue_id = add_model(self.store, "echo").queue_ids[Lane.FIRM]
        self.folder = folder / "payloads"
        self.objects = open_objects(Settings(state_dir=folder))
        self.registry = new_registry()
        self.metrics = DispatcherMetrics(self.registry)
        self.sweeper = self.another()

    def another(self, *, objects: Any = None, store: Any = None) -> PayloadSweep:
        return PayloadSweep(
            store or self.store,
            objects or self.objects,
            RetentionSettings(payload_seconds=KEEP_SECONDS),
            leads=lambda: True,
            every_seconds=0.001,
            metrics=self.metrics,
        )

    def write(self, number: int) -> str:
        """The first half of an upload."""
        location = location_of(number, tenant_id=1)
        self.store.expect_payload(number, location=location)
        self.objects.put(location, [b"bytes"], max_bytes=9)
        return location

    def upload(self, number: int) -> str:
        location = self.write(number)
        info = PayloadInfo(id=number, tenant_id=1, content_type="x", size=5, digest=b"", location=location)
        self.store.add_payload(info)
        return location

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def deletions(self, outcome: str) -> float:
        return self.registry.get_sample_value("batchyard_payload_deletions_total", {"outcome": outcome}) or 0


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(payload_sweep, "STEP_PAUSE_SECONDS", 0)
    rig = Rig(tmp_path)
    yield rig
    rig.store.close()


def test_unused_bytes_go_when_their_time_is_over(rig: Rig) -> None:
    rig.upload(1)
    used = rig.upload(2)
    reference = PayloadReference(index=0, payload_id=2, pointer="/input")
    submit(rig.store, rig.queue_id, 1, payloads=[reference])
    rig.clock.seconds += KEEP_SECONDS
    young = rig.upload(3)
    rig.sweeper.sweep()
    assert len(rig.files()) == 3
    rig.clock.seconds += 1
    rig.sweeper.sweep()
    assert rig.files() == {used, young}
    assert rig.deletions("deleted") == 1


def test_everything_goes_however_many_steps_it_takes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_sweep, "STEP_PAYLOADS", 3)
    for number in range(10):
        rig.upload(number)
    rig.clock.seconds += KEEP_SECONDS + 1
    rig.sweeper.sweep()
    assert rig.files() == set()
    rig.clock.seconds += DAY_SECONDS
    again = rig.store.sweep_payloads(deleted=[], uploaded_before_ms=rig.clock(), limit=100)
    assert again == [], "what is deleted is not handed out again"


def test_a_sweep_that_dies_between_row_and_bytes_is_followed_by_one_that_ends_it(rig: Rig) -> None:
    location = rig.upload(1)
    before_ms = rig.clock() + 1
    assert len(rig.store.sweep_payloads(deleted=[], uploaded_before_ms=before_ms, limit=9)) == 1
    assert rig.store.get_payloads([1]) == []
    rig.sweeper.sweep()
    assert rig.files() == {location}, "the other may still be at it"
    rig.clock.seconds += KEEP_SECONDS
    rig.another().sweep()
    assert rig.files() == set()


def test_an_upload_that_died_is_cleared_away_a_day_later(rig: Rig) -> None:
    location = rig.write(1)
    rig.clock.seconds += DAY_SECONDS - 1
    rig.sweeper.sweep()
    assert rig.files() == {location}
    rig.clock.seconds += 1
    rig.sweeper.sweep()
    assert rig.files() == set()


class Stubborn:
    """An object store that does not delete some locations."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self.faults: dict[str, Exception] = {}

    def delete(self, location: str) -> None:
        if location in self.faults:
            raise self.faults[location]
        self.objects.delete(location)


def test_what_cannot_be_deleted_keeps_nothing_else_and_is_tried_again(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn = Stubborn(rig.objects)
    kept = {rig.upload(2): Unavailable("away"), rig.upload(3): RuntimeError("a bug of a driver")}
    rig.upload(1)
    rig.upload(4)
    stubborn.faults = dict(kept)
    sweeper = rig.another(objects=stubborn)
    rig.clock.seconds += KEEP_SECONDS + 1
    with caplog.at_level(logging.WARNING):
        sweeper.sweep()
    assert rig.files() == set(kept)
    assert [record.message for record in caplog.records] == ["payloads_not_deleted"]
    assert (rig.deletions("deleted"), rig.deletions("failed")) == (2, 2)
    stubborn.faults.clear()
    rig.clock.seconds += KEEP_SECONDS
    sweeper.sweep()
    assert rig.files() == set()


def test_it_sweeps_again_and_again_while_it_leads(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        """A store whose database is away at first."""

        def __init__(self) -> None:
            self.sweeps = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(rig.store, name)

        def sweep_payloads(self, **step: Any) -> Any:
            self.sweeps += 1
            if self.sweeps < 4:
                raise Unavailable("away")
            return rig.store.sweep_payloads(**step)

    away = Away()
    leads = False
    location = rig.upload(1)
    rig.clock.seconds += KEEP_SECONDS + 1
    retention = RetentionSettings(payload_seconds=KEEP_SECONDS)
    asked: list[bool] = []

    def is_leader() -> bool:
        asked.append(leads)
        return leads

    store: Any = away
    sweeper = PayloadSweep(store, rig.objects, retention, leads=is_leader, every_seconds=0.001)
    sweeper.start()
    until(lambda: len(asked) > 3)
    assert rig.files() == {location}
    with caplog.at_level(logging.WARNING):
        leads = True
        until(lambda: rig.files() == set())
    assert [record.message for record in caplog.records] == ["payload_sweep_failed"], "once per outage"
    sweeper.close()


# --- through the API --------------------------------------------------------------------------------------------------


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    assert (response.status_code, document["code"]) == (status, code)
    return document


async def test_bytes_and_row_go_with_the_job_that_is_forgotten(serve: Serve, tmp_path: Path) -> None:
    async with serve(timing=Timing(lead=0.01, idle=0.01, payloads=0.01)) as api:
        number = (await api.post("/v1/payloads", content=b"abc")).json()["id"]
        spare = (await api.post("/v1/payloads", content=b"abc")).json()["id"]
        named = {"input": {"image": {"$payload": number}}}
        job = (await api.post("/v1/models/echo/jobs", json=named)).json()["id"]
        api.finish([job])
        assert (await api.get(f"/v1/payloads/{number}")).content == b"abc"
        assert (await api.delete(f"/v1/jobs/{job}")).status_code == 204
        problem(await api.get(f"/v1/payloads/{number}"), 404, "not_found")
        problem(await api.post("/v1/models/echo/jobs", json=named), 422, "invalid_input")
        folder = tmp_path / "payloads" / "1"
        await asyncio.to_thread(until, lambda: [path.name for path in folder.iterdir()] == [spare])


async def test_what_is_refused_for_its_payload_says_where(api: Served) -> None:
    number = (await api.post("/v1/payloads", content=b"abc")).json()["id"]
    inputs = [{"$payload": number}, {"image": {"$payload": "0000000000000005"}}]
    refused = problem(await api.post("/v1/models/echo/jobs", json={"inputs": inputs}), 422, "invalid_input")
    assert (refused["pointer"], refused["index"]) == ("/inputs/1", 1)
    assert "0000000000000005" in refused["detail"]


async def test_an_upload_is_known_before_its_bytes(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(info: PayloadInfo, **more: Any) -> None:
        raise Unavailable("away", retry_after_seconds=1)

    monkeypatch.setattr(store_payloads, "UPLOAD_MS", -1)
    monkeypatch.setattr(api.store, "add_payload", lost)
    problem(await api.post("/v1/payloads", content=b"abc"), 503, "unavailable")
    [leftover] = api.store.sweep_payloads(deleted=[], uploaded_before_ms=0, limit=9)
    assert leftover.location == location_of(leftover.id, tenant_id=1)


async def test_bytes_stay_where_it_is_not_known_whether_their_row_does(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[PayloadInfo] = []
    add = api.store.add_payload

    def lossy(info: PayloadInfo, **more: Any) -> None:
        add(info, **more)
        made.append(info)
        raise Unavailable("the answer to the commit was lost", retry_after_seconds=1)

    monkeypatch.setattr(api.store, "add_payload", lossy)
    problem(await api.post("/v1/payloads", content=b"abc"), 503, "unavailable")
    named = {"input": {"$payload": f"{made[0].id:016x}"}}
    assert (await api.post("/v1/models/echo/jobs", json=named)).status_code == 202
    assert (await api.get(f"/v1/payloads/{made[0].id:016x}")).content == b"abc"
