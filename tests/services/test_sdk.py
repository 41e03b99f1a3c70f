"""The SDK against everything that `batchyard up` runs."""

import signal
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchyard import (
    AsyncClient,
    Client,
    Conflict,
    Gone,
    IdempotencyConflict,
    InvalidRequest,
    Job,
    JobCancelled,
    JobFailed,
    JobRetired,
    NotFound,
    Result,
    TooLarge,
    UnknownModel,
    WaitTimeout,
)
from tests.services.up import Up, eventually, running_up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up")) as running:
        yield running


@pytest.fixture(params=["http", "direct"])
def client(up: Up, request: pytest.FixtureRequest) -> Iterator[Client]:
    """The same interface over HTTP and straight on the database."""
    made = Client(up.url) if request.param == "http" else Client.direct(config=up.config)
    with made:
        yield made


@pytest.fixture
def paused(up: Up) -> Iterator[None]:
    """Moody's jobs stay queued while this lasts."""
    with Client(up.url) as client:
        client.pause("moody")
        yield
        client.resume("moody")


def echo(value: Any) -> dict[str, Any]:
    return {"do": "echo", "value": value}


def test_one_job(client: Client) -> None:
    job = client.submit("moody", echo({"a": [1, "ä"]}), custom_id="mine", labels=["l"], priority=7)

    assert job.result(timeout=60) == {"a": [1, "ä"]}
    assert (job.state, job.done, job.custom_id, job.model) == ("succeeded", True, "mine", "moody@1")
    assert client.get(job.id).result() == {"a": [1, "ä"]}
    assert job.id in [each.id for each in client.jobs(label="l", page_size=2)]


def test_tensors_come_as_arrays(client: Client) -> None:
    numpy = pytest.importorskip("numpy")

    result = client.submit("moody", {"do": "vector", "value": [1.5, 2.5]}).result(timeout=60)

    assert result["vector"].dtype == numpy.float32
    assert result["vector"].tolist() == [1.5, 2.5]


def test_several_jobs_and_their_lookup(client: Client) -> None:
    jobs = client.submit_many("moody", [echo(n) for n in range(50)], custom_ids=[str(n) for n in range(50)])

    found = client.lookup(jobs, wait=30, until="all")

    assert [job.result() for job in found] == list(range(50))
    assert [job.custom_id for job in found] == [str(n) for n in range(50)]


def test_a_failed_job_raises_its_error(client: Client) -> None:
    job = client.submit("moody", {"do": "invalid", "value": 1})

    with pytest.raises(JobFailed, match="as asked") as caught:
        job.result(timeout=60)
    assert (caught.value.code, caught.value.retryable) == ("invalid_input", False)
    assert job.error is not None


@pytest.mark.usefixtures("paused")
def test_a_queued_job_can_be_watched_amended_cancelled_and_forgotten(client: Client) -> None:
    job = client.submit("moody", echo(1))

    with pytest.raises(WaitTimeout):
        job.result(timeout=0.2)
    assert eventually(lambda: "paused" in (job.refresh().waits_because or ""))
    assert job.amend(priority=9).data.priority == 9
    with pytest.raises(Conflict):
        job.forget()
    assert job.cancel().state == "cancelled"
    with pytest.raises(JobCancelled):
        job.result()

    job.forget()
    with pytest.raises(Gone):
        client.get(job.id)


def test_refusals_are_typed(client: Client) -> None:
    with pytest.raises(UnknownModel, match='did you mean "moody"'):
        client.submit("moodi", 1)
    with pytest.raises(NotFound):
        client.get("0" * 16)
    with pytest.raises(InvalidRequest, match="priority"):
        client.submit("moody", 1, priority=11)
    with pytest.raises(TooLarge, match="limit"):
        client.submit("moody", "x" * 2_000_000)
    with pytest.raises(TooLarge):
        client.submit_many("moody", range(10_001))


def test_an_idempotency_key_makes_one_job(client: Client) -> None:
    key = f"key-of-{client._transport.__class__.__name__}"
    first = client.submit("moody", echo(1), idempotency_key=key)

    assert client.submit("moody", echo(1), idempotency_key=key).id == first.id
    with pytest.raises(IdempotencyConflict):
        client.submit("moody", echo(2), idempotency_key=key)


def test_a_payload_may_stand_in_an_input(client: Client) -> None:
    payload = client.upload(b"\x00\x01", "application/octet-stream")

    assert set(payload) == {"$payload"}
    assert client.submit("moody", {**echo(5), "file": payload}).result(timeout=60) == 5


def test_a_map_gives_every_result(client: Client) -> None:
    inputs = [echo(n) for n in range(3000)]

    assert [result.value for result in client.map("moody", inputs, ordered=True)] == list(range(3000))
    assert {result.index: result.value for result in client.map("moody", iter(inputs))} == dict(enumerate(range(3000)))


def test_a_map_hands_out_errors_beside_results(client: Client) -> None:
    inputs = [echo(0), {"do": "invalid"}, {"do": "nan"}, echo(3)]

    found = {result.index: result for result in client.map("moody", inputs, errors="yield")}

    assert [found[index].ok for index in range(4)] == [True, False, False, True]
    assert [found[index].error.code for index in (1, 2)] == ["invalid_input", "bad_output"]  # type: ignore[union-attr]


def test_a_map_that_broke_off_goes_on_under_its_key(client: Client) -> None:
    key = f"resumed-{client._transport.__class__.__name__}"

    def broken() -> Iterator[Any]:
        yield from (echo(n) for n in range(700))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.map("moody", broken(), key=key))

    found = [result.value for result in client.map("moody", (echo(n) for n in range(2000)), key=key)]
    assert sorted(found) == list(range(2000))


def test_a_bulk_can_be_fed_steered_and_read(client: Client) -> None:
    bulk = client.bulk("moody", chunk_size=100, labels=["by-hand"])
    bulk.add([echo(n) for n in range(100)]).add(echo(n) for n in range(100, 150))
    assert bulk.pause().data.paused
    assert not bulk.resume().data.paused
    bulk.seal()

    found = sorted(result.value for result in client.bulk(id=bulk.id).results())

    assert found == list(range(150))
    assert bulk.refresh().finished
    assert bulk.counts == {"succeeded": 150}
    with pytest.raises(Conflict):
        bulk.add([echo(1)])


def test_a_result_that_is_no_longer_kept_has_its_place_in_the_order(client: Client) -> None:
    label = f"holes-{client._transport.__class__.__name__}"
    inputs = [echo(n) for n in range(30)]

    def broken() -> Iterator[Any]:
        yield from inputs[:20]
        raise ZeroDivisionError

    def mapped(given: Iterable[Any]) -> list[Result]:
        # No more than two are in flight: were the forgotten ones among them for ever, nothing would be fed.
        return list(
            client.map("moody", given, key=label, labels=[label], ordered=True, errors="yield", max_in_flight=2)
        )

    with pytest.raises(ZeroDivisionError):
        mapped(broken())
    jobs = sorted(client.jobs(label=label), key=lambda job: job.id)
    for job in client.lookup(jobs[3:5], wait=30):
        job.forget()

    found = mapped(inputs)

    assert [result.index for result in found] == list(range(30))
    assert [result.index for result in found if isinstance(result.error, JobRetired)] == [3, 4]
    assert [result.value for result in found if result.ok] == [n for n in range(30) if n not in {3, 4}]


@pytest.mark.usefixtures("paused")
def test_a_bulk_can_be_cancelled(client: Client) -> None:
    bulk = client.bulk("moody").add([echo(n) for n in range(20)]).cancel()

    states = {result.state for result in bulk.results(errors="yield")}

    assert states == {"cancelled"}


def test_models_are_listed_with_their_queues(client: Client) -> None:
    models = {model.name: model for model in client.models()}

    assert set(models) == {"lengths", "moody"}
    assert client.model("moody@1").versions[0].lane == "tolerant"
    assert {queue.lane for queue in models["moody"].versions[0].queues} == {"firm", "tolerant"}


def dead(client: Client, *values: str, **options: Any) -> list[Job]:
    """Jobs that have failed."""
    inputs = [{"do": value} for value in values]
    return client.lookup(client.submit_many("moody", inputs, max_failures=1, **options), wait=30)


def test_dead_jobs_are_found_and_redriven(client: Client) -> None:
    mark = uuid.uuid4().hex
    broken, also, invalid = jobs = dead(client, "raise", "raise", "invalid", labels=[mark])
    listed = [job.data for job in client.jobs(label=mark, error="model_error", page_size=1)]
    assert [(each.id, each.error and each.error.message) for each in listed] == [
        (also.id, "ValueError: as asked"),
        (broken.id, "ValueError: as asked"),
    ]
    before = datetime.now(UTC) - timedelta(hours=1)
    assert list(client.jobs(label=mark, finished_before=before)) == []
    assert len(list(client.jobs(label=mark, finished_from=before, state="failed"))) == 3

    # Successors have the labels of the old, and may die of the same.
    now = datetime.fromisoformat(max(job.refresh().data.finished_at or "" for job in jobs)) + timedelta(milliseconds=1)
    foreseen = client.redrive(label=mark, error="model_error", dry_run=True)
    assert [(each.id, each.redriven_as) for each in foreseen] == [(also.id, None), (broken.id, None)]
    [one] = client.redrive([invalid], to="moody@1")
    assert (one.id, one.already, one.refused) == (invalid.id, False, None)
    made = client.redrive(label=mark, finished_before=now)
    assert [(each.id, each.already) for each in made] == [(invalid.id, True), (also.id, False), (broken.id, False)]
    assert made[0].redriven_as == one.redriven_as
    new = client.get(made[2].redriven_as or "", wait=30)
    assert (new.data.redrive_of, new.state, new.data.labels) == (broken.id, "failed", [mark])
    assert broken.refresh().data.redriven_as == new.id
    last = new.redrive()
    assert last.data.redrive_of == new.id
    assert new.redrive().id == last.id
    assert last.wait(30).state == "failed"
    assert [each.refused and each.refused.code for each in client.redrive([jobs[0].id, "0" * 16])] == [
        None,
        "not_found",
    ]


def test_a_redrive_that_cannot_be_says_why(client: Client) -> None:
    [broken] = dead(client, "raise")
    for wrong in ({}, {"ids": [broken], "label": "l"}):
        with pytest.raises(InvalidRequest, match="which jobs"):
            client.redrive(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        client.redrive(finished_before=datetime(2020, 1, 1))  # noqa: DTZ001  it has no offset
    with pytest.raises(UnknownModel):
        broken.redrive(to="moodi")
    with pytest.raises(UnknownModel):
        client.redrive([broken], to="moodi")
    done = client.submit("moody", echo(1)).wait(30)
    with pytest.raises(Conflict, match="succeeded"):
        done.redrive()
    broken.forget()
    with pytest.raises(Gone):
        broken.redrive()


def test_a_lane_of_a_model_can_be_paused(client: Client) -> None:
    queues = client.pause("moody", lane="firm").versions[0].queues
    assert {queue.lane: queue.paused for queue in queues} == {"firm": True, "tolerant": False}
    assert not any(queue.paused for queue in client.resume("moody@1").versions[0].queues)
    with pytest.raises(UnknownModel):
        client.pause("moodi")


def test_the_system_can_be_looked_at(up: Up) -> None:
    with Client(up.url) as client:
        assert client.status().broker == "up"
        assert [pool.name for pool in client.pools()] == ["local"]
        assert "batchyard_" in client.metrics()


@pytest.mark.slow
def test_a_map_outlives_the_api_and_the_consumer(up: Up) -> None:
    """Both are killed while it runs; the map hears nothing of it."""
    with Client(up.url) as client:
        results = client.map("moody", (echo(n) for n in range(20_000)), chunk_size=500, max_in_flight=2000)
        seen = [next(results).value for _ in range(1000)]
        [api] = up.children("api")
        api.send_signal(signal.SIGKILL)
        seen += [next(results).value for _ in range(4000)]
        [worker] = up.children("worker")
        worker.send_signal(signal.SIGKILL)
        seen += [result.value for result in results]

    assert sorted(seen) == list(range(20_000))


async def test_the_same_with_asyncio(up: Up) -> None:
    async with AsyncClient(up.url) as client:
        job = await client.submit("moody", echo(1))
        assert await job.result(timeout=60) == 1
        assert (await client.get(job.id)).state == "succeeded"
        assert (await anext(client.jobs(page_size=1))).id >= job.id
        found = await client.lookup(await client.submit_many("moody", [echo(1), echo(2)]), wait=30)
        assert [await each.result() for each in found] == [1, 2]
        with pytest.raises(UnknownModel):
            await client.submit("moodi", 1)
        failed = await (await client.submit("moody", {"do": "raise"}, labels=["async"])).wait(30)
        [made] = await client.redrive([failed])
        assert (await failed.redrive()).id == made.redriven_as
        assert [job.id async for job in client.jobs(label="async", error="model_error")][-1] == failed.id


async def test_maps_with_asyncio(up: Up) -> None:
    async def inputs() -> AsyncIterator[Any]:
        for n in range(1500):
            yield echo(n)

    async with AsyncClient(up.url) as client:
        ordered = [result.value async for result in client.map("moody", inputs(), ordered=True)]
        assert ordered == list(range(1500))
        mixed = [result async for result in client.map("moody", [echo(1), {"do": "invalid"}], errors="yield")]
        assert sorted(result.ok for result in mixed) == [False, True]
        with pytest.raises(UnknownModel):
            await anext(client.map("moodi", [1]))
        async with client.map("moody", (echo(n) for n in range(10**9)), max_in_flight=100) as results:
            assert (await anext(results)).ok
            assert results.bulk_id is not None
        bulk = await client.bulk(id=results.bulk_id)
        await bulk.cancel()


def test_a_client_where_nobody_listens_says_so(tmp_path: Path) -> None:
    from batchyard import ConnectionFailed

    with Client("http://127.0.0.1:9", retry_seconds=0) as client, pytest.raises(ConnectionFailed, match="batchyard up"):
        client.models()
