"""Webhooks across processes: an API that is killed while it delivers, and the SDK and the command that manage them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchyard import AsyncClient, Client, NotFound, webhooks
from batchyard.cli.app import root
from batchyard.jobs import Outcome, State, parse_id
from batchyard.store import migrate
from batchyard.store.base import DeliveryFilter, DeliveryState, JobStore
from batchyard.store.open import database_url, open_store
from tests.services.api.process import Process, started
from tests.services.receiver import Receiver, receiving
from tests.services.store.yard import Yard, eventually

CONFIGURATION = """
[database]
url = "{database}"
[models.echo]
runtime = "tests:Echo"
[pools.local]
models = ["echo"]
[webhooks]
allowed_networks = ["127.0.0.0/8"]
retry_seconds = [0.1, 0.1, 0.1]
timeout_seconds = 1.0
"""
TENANT = 1


class Place:
    """A folder with a configuration and a database, in which APIs are started; and the consumer's part."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.store: JobStore = open_store(url, state_dir=folder / ".batchyard")
        self.url = ""
        self._owner: int | None = None

    @contextmanager
    def api(self) -> Iterator[tuple[Process, Client]]:
        with started(self.folder) as (process, http), Client(str(http.base_url)) as client:
            self.url = str(http.base_url)
            yield process, client

    def finish(self, *ids: str) -> None:
        """Claim jobs and let them succeed, as a consumer in a process of its own would."""
        if self._owner is None:
            self._owner = self.store.register_consumer(
                pool="local", host="", pid=1, device="cpu", capacity="on_demand", queue_ids=[], lease_ms=600_000
            )
        numbers = sorted(parse_id(each) or 0 for each in ids)
        [view, *_] = self.store.get_jobs(numbers, tenant_id=TENANT, results=False)
        claimed = self.store.claim([(view.queue_id, numbers)], owner=self._owner)
        outcomes = [Outcome(job, State.SUCCEEDED, body=job.input, cost=1) for job in claimed]
        assert len(self.store.finish(outcomes, owner=self._owner)) == len(ids)

    def states(self) -> list[DeliveryState]:
        return [each.state for each in self.store.deliveries(DeliveryFilter(tenant_id=TENANT), limit=1000)]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    (tmp_path / ".batchyard").mkdir()
    url = "sqlite"
    if request.param == "postgres":
        url = str(request.getfixturevalue("empty_postgres"))
    else:
        migrate.upgrade(database_url(url, state_dir=tmp_path / ".batchyard"))
    (tmp_path / "batchyard.toml").write_text(CONFIGURATION.format(database=url))
    made = Place(tmp_path, url)
    yield made
    made.store.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def test_an_api_that_is_killed_mid_delivery_delays_messages_and_loses_none(place: Place, receiver: Receiver) -> None:
    receiver.statuses += [500]
    with place.api() as (process, client):
        tenants = client.webhooks.create(f"{receiver.url}/tenant", events=["job.succeeded", "bulk.finished"])
        early = client.submit("echo", 1, webhook=f"{receiver.url}/job")
        late = client.submit("echo", 2)
        bulk = client.bulk("echo", webhook=f"{receiver.url}/bulk")
        fed = bulk.add([3]).seal()
        in_bulk = next(job.id for job in client.jobs() if job.data.bulk_id == fed.id)
        receiver.released.clear()
        place.finish(early.id)
        # Both messages are on their way, and neither is answered.
        begun = {(heard.path, heard.headers["webhook-id"]): heard for heard in receiver.messages(2)}
        process.running.kill()
        process.end()
    # These commit while nobody could deliver them.
    place.finish(late.id, in_bulk)
    receiver.released.set()
    with place.api() as (_, client):
        eventually(lambda: place.states() == [DeliveryState.DELIVERED] * 6, seconds=40)
        rows = list(client.webhooks.deliveries())
        secrets = {each.url: client.webhooks.secrets(each.id) for each in client.webhooks.list()}
    wanted = {
        ("/job", f"msg_{early.id}"),
        ("/tenant", f"msg_{early.id}"),
        ("/tenant", f"msg_{late.id}"),
        ("/tenant", f"msg_{in_bulk}"),
        ("/tenant", f"msg_{bulk.id}"),
        ("/bulk", f"msg_{bulk.id}"),
    }
    assert {(row.url.removeprefix(receiver.url), f"msg_{row.job_id or row.bulk_id}") for row in rows} == wanted
    again = []
    while not receiver.heard.empty():
        again.append(receiver.heard.get())
    assert {(heard.path, heard.headers["webhook-id"]) for heard in again} == wanted
    for heard in again:
        path_secrets = secrets[tenants.url] if heard.path == "/tenant" else secrets[None]
        event = webhooks.verify(heard.body, heard.headers, path_secrets)
        assert f"msg_{event['data']['id']}" == heard.headers["webhook-id"]
        before = begun.get((heard.path, heard.headers["webhook-id"]))
        assert before is None or before.body == heard.body


async def test_the_sdk_manages_endpoints_in_both_styles(place: Place, receiver: Receiver) -> None:
    receiver.statuses += [410]
    with place.api() as (_, client):
        one = client.webhooks.create(receiver.url, events=["job.cancelled"], description="nightly")
        client.submit("echo", 1).cancel()
        eventually(lambda: place.states() == [DeliveryState.DEAD])
        [shown] = client.webhooks.list()
        assert (shown.id, shown.description, shown.disabled_because) == (
            one.id,
            "nightly",
            "the receiver answered 410",
        )
        async with AsyncClient(place.url) as other:
            assert (await other.webhooks.enable(one.id)).disabled_at is None
            [dead] = [each async for each in other.webhooks.deliveries(state="dead", webhook_id=one.id)]
            assert await other.webhooks.replay(delivery_id=dead.id) == 1
            eventually(lambda: place.states() == [DeliveryState.DELIVERED])
            new, old = await other.webhooks.rotate(one.id)
            assert old == one.secret
            assert await other.webhooks.secrets(one.id) == [new, old]
            assert (await other.webhooks.disable(one.id)).disabled_because == "disabled by its owner"
            assert [each.id for each in await other.webhooks.list()] == [one.id]
            made = await other.webhooks.create(f"{receiver.url}/other")
            await other.webhooks.delete(made.id)
        assert client.webhooks.enable(one.id).disabled_at is None
        assert client.webhooks.disable(one.id).disabled_at is not None
        assert client.webhooks.replay(webhook_id=one.id) == 0
        assert len(client.webhooks.rotate(one.id, overlap_seconds=0)) == 1
        client.webhooks.delete(one.id)
        with pytest.raises(NotFound):
            client.webhooks.secrets(one.id)


@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_the_command_manages_endpoints_and_replays(place: Place) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        options = ("--config", str(place.folder / "batchyard.toml"), "--state", str(place.folder / ".batchyard"))
        done = CliRunner().invoke(root, ["webhooks", *arguments, *options], standalone_mode=False)
        assert (done.exit_code, bool(done.exception)) == (code, code != 0), (done.output, done.exception)
        return done.stdout

    secret = run("add", "https://example.com/hook", "--event", "job.cancelled", "--description", "[nightly]").strip()
    assert secret.startswith("whsec_")
    [one] = place.store.webhooks()
    assert (one.secrets, one.events) == ((secret,), ("job.cancelled",))
    yard = Yard(place.store)
    for job_id in yard.submit(2):
        place.store.cancel(job_id, tenant_id=TENANT)
    for due in place.store.take_deliveries(limit=9, of_one=9, underway={}, lease_ms=1000):
        place.store.end_delivery(due.delivery, status=500, error="the receiver answered 500")
    number = f"{one.id:016x}"
    listed = run("deliveries", "--endpoint", number, "--only", "dead")
    assert listed.count("job.cancelled") == 2
    assert "[nightly]" in run("list")
    first = place.store.deliveries(DeliveryFilter(tenant_id=TENANT), limit=1)[0]
    assert run("replay", f"{first.id:016x}") == "1 delivery pending again\n"
    assert run("replay", "--from", "2020-01-01T00:00:00+00:00", "--before", "2020-01-02T00:00:00+00:00").startswith(
        "0 "
    )
    assert run("replay", "--endpoint", number) == "1 delivery pending again\n"
    assert place.states() == [DeliveryState.PENDING] * 2
    assert run("rotate", number).strip() != secret
    assert len(place.store.webhooks()[0].secrets) == 2
    run("disable", number)
    assert "disabled by the operator" in run("list")
    run("enable", number)
    run("remove", number)
    assert place.store.webhooks() == []
    for arguments in (
        ("replay",),
        ("remove", number),
        ("rotate", "nonsense"),
        ("add", "http://example.com/"),
        ("add", "https://example.com/", "--tenant", "nobody"),
    ):
        run(*arguments, code=1)
