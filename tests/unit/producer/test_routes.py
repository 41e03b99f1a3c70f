"""The calls of the API that are not hot: what they answer, and what they say to wrong requests."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest

from batchyard.errors import Unavailable
from batchyard.jobs import format_id
from batchyard.keda import SCALE_PATH, SCALE_VALUE
from batchyard.schemas import rfc3339
from batchyard.settings import ServerSettings
from batchyard.store import migrate
from batchyard.store.base import PoolDecision, PoolOverride, SpendRow
from batchyard_producer import intake
from tests.unit.producer.conftest import Serve, Served

NOWHERE = "0123456789abcdef"


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["detail"]
    assert "Traceback" not in response.text
    return document


async def submit(api: Served, *, model: str = "echo", count: int = 1, **options: Any) -> list[str]:
    response = await api.post(f"/v1/models/{model}/jobs", json={"inputs": [{"n": n} for n in range(count)], **options})
    assert response.status_code == 202, response.text
    ids: list[str] = response.json()["ids"]
    return ids


async def answered(api: Served, path: str, is_it: Callable[[httpx.Response], bool]) -> httpx.Response:
    """The answer once it is the one wanted, which follows from what a thread does."""
    end = time.monotonic() + 5
    while True:
        response = await api.get(path)
        if is_it(response):
            return response
        assert time.monotonic() < end, response.text
        await asyncio.sleep(0.01)


# --- jobs ---


async def test_jobs_are_listed_newest_first_in_pages(api: Served) -> None:
    ids = await submit(api, count=5)
    seen, after = [], None
    while True:
        query = {"limit": "2", **({"after": after} if after else {})}
        page = (await api.get("/v1/jobs", params=query)).json()
        seen += [job["id"] for job in page["jobs"]]
        after = page.get("next")
        if after is None:
            break
    assert seen == ids[::-1]


async def test_jobs_are_filtered(api: Served) -> None:
    [one] = await submit(api, labels=["a"])
    [other] = await submit(api, model="twin@2", labels=["b"])
    api.finish([one])

    async def listed(**query: str) -> list[str]:
        return [job["id"] for job in (await api.get("/v1/jobs", params=query)).json()["jobs"]]

    assert await listed(model="echo") == [one]
    assert await listed(model="twin") == await listed(model="twin@2") == await listed(label="b") == [other]
    assert await listed(model="twin@1") == []
    assert await listed(state="succeeded") == [one]
    assert await listed(state="queued", label="a") == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "limit=-1", "after=x", "state=done", "lable=x", "limit=1&limit=2", "limit=²"],
)
async def test_a_wrong_query_is_refused(shared_api: Served, query: str) -> None:
    problem(await shared_api.get(f"/v1/jobs?{query}"), 422, "invalid_request")


async def test_listing_an_unknown_model_names_the_nearest(shared_api: Served) -> None:
    assert problem(await shared_api.get("/v1/jobs?model=eco"), 404, "unknown_model")["nearest"] == "echo"


async def test_a_queued_job_is_amended(shared_api: Served) -> None:
    [job] = await submit(shared_api)
    response = await shared_api.patch(f"/v1/jobs/{job}", json={"priority": 9, "deadline_seconds": 60})
    assert response.status_code == 200
    document = response.json()
    assert (document["priority"], document["position"]) == (9, 0)
    assert document["deadline"] > document["created_at"]
    shared_api.finish([job])
    problem(await shared_api.patch(f"/v1/jobs/{job}", json={"priority": 1}), 409, "conflict")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "{}",
        "[]",
        '{"priority": 10}',
        '{"priority": "9"}',
        '{"prioritty": 9}',
        '{"deadline_seconds": 0}',
        '{"priority": 1, "priority": 2}',
    ],
)
async def test_a_wrong_amendment_is_refused(shared_api: Served, body: str) -> None:
    [job] = await submit(shared_api)
    problem(await shared_api.patch(f"/v1/jobs/{job}", content=body), 422, "invalid_request")


async def test_a_queued_job_is_cancelled_once_and_for_all(shared_api: Served) -> None:
    [job] = await submit(shared_api)
    for _ in range(2):
        response = await shared_api.post(f"/v1/jobs/{job}/cancel")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")


async def test_a_finished_job_is_answered_as_it_is_when_cancelled(shared_api: Served) -> None:
    [job] = await submit(shared_api)
    shared_api.finish([job])
    assert (await shared_api.post(f"/v1/jobs/{job}/cancel")).json()["state"] == "succeeded"


async def test_a_finished_job_is_forgotten_and_gone(shared_api: Served) -> None:
    [job] = await submit(shared_api)
    problem(await shared_api.delete(f"/v1/jobs/{job}"), 409, "conflict")
    shared_api.finish([job])
    assert (await shared_api.delete(f"/v1/jobs/{job}")).status_code == 204
    for response in (
        await shared_api.delete(f"/v1/jobs/{job}"),
        await shared_api.post(f"/v1/jobs/{job}/cancel"),
        await shared_api.patch(f"/v1/jobs/{job}", json={"priority": 1}),
        await shared_api.get(f"/v1/jobs/{job}"),
    ):
        problem(response, 410, "gone")


@pytest.mark.parametrize("job", [NOWHERE, "x", "0" * 15, "F" * 16, "%00"])
async def test_a_job_that_is_not_there_is_not_found(shared_api: Served, job: str) -> None:
    problem(await shared_api.post(f"/v1/jobs/{job}/cancel"), 404, "not_found")
    problem(await shared_api.delete(f"/v1/jobs/{job}"), 404, "not_found")
    problem(await shared_api.patch(f"/v1/jobs/{job}", json={"priority": 1}), 404, "not_found")


# --- bulks ---


async def create_bulk(api: Served, **more: Any) -> dict[str, Any]:
    response = await api.post("/v1/bulks", json={"model": "echo", **more})
    assert response.status_code == 201, response.text
    bulk: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/v1/bulks/{bulk['id']}"
    return bulk


async def test_a_bulk_is_created_fed_sealed_and_finished(api: Served) -> None:
    bulk = await create_bulk(api, priority=7, labels=["x"], chunk_size=3)
    assert (bulk["model"], bulk["jobs"], bulk["chunk_size"]) == ("echo@1", 0, 3)
    chunk = await api.post(f"/v1/bulks/{bulk['id']}/jobs", json={"inputs": [1, 2, 3]})
    assert chunk.status_code == 202, chunk.text
    sealed = await api.post(f"/v1/bulks/{bulk['id']}/seal")
    assert sealed.json()["counts"] == {"queued": 3}
    assert "sealed_at" in sealed.json()
    assert not sealed.json().get("finished", False)
    ids = [job["id"] for job in (await api.get("/v1/jobs")).json()["jobs"]]
    api.finish(ids)
    done = (await api.get(f"/v1/bulks/{bulk['id']}")).json()
    assert done["finished"]
    assert done["counts"] == {"succeeded": 3}
    assert (done["cost"], done["priority"], done["labels"]) == (9, 7, ["x"])


async def test_a_known_key_answers_the_same_bulk(shared_api: Served) -> None:
    headers = {"idempotency-key": "mine"}
    first = await shared_api.post("/v1/bulks", json={"model": "echo"}, headers=headers)
    again = await shared_api.post("/v1/bulks", json={"model": "echo"}, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = await shared_api.post("/v1/bulks", json={"model": "twin"}, headers=headers)
    problem(other, 422, "idempotency_conflict")


async def test_bulks_are_paused_resumed_and_cancelled(shared_api: Served) -> None:
    bulk = (await create_bulk(shared_api))["id"]
    await shared_api.post(f"/v1/bulks/{bulk}/jobs", json={"inputs": [1, 2]})
    assert (await shared_api.post(f"/v1/bulks/{bulk}/pause")).json()["paused"]
    assert not (await shared_api.post(f"/v1/bulks/{bulk}/resume")).json().get("paused", False)
    cancelled = (await shared_api.post(f"/v1/bulks/{bulk}/cancel")).json()
    assert cancelled["cancel_requested"]
    assert "sealed_at" in cancelled


async def test_bulks_are_listed_newest_first_in_pages(api: Served) -> None:
    made = [(await create_bulk(api))["id"] for _ in range(3)]
    first = (await api.get("/v1/bulks?limit=2")).json()
    second = (await api.get("/v1/bulks", params={"limit": 2, "after": first["next"]})).json()
    assert [bulk["id"] for bulk in first["bulks"] + second["bulks"]] == made[::-1]
    assert "next" not in second


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"model": 1}',
        '{"model": "echo", "chunk_size": 0}',
        '{"model": "echo", "size": 1}',
        '{"model": "\\u0000"}',
    ],
)
async def test_a_wrong_bulk_is_refused(shared_api: Served, body: str) -> None:
    problem(await shared_api.post("/v1/bulks", content=body), 422, "invalid_request")


async def test_a_bulk_for_an_unknown_model_is_refused(shared_api: Served) -> None:
    problem(await shared_api.post("/v1/bulks", json={"model": "nope"}), 404, "unknown_model")


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f"])
async def test_a_wrong_idempotency_key_is_refused(shared_api: Served, key: str) -> None:
    response = await shared_api.post("/v1/bulks", json={"model": "echo"}, headers={"idempotency-key": key})
    problem(response, 422, "invalid_request")


@pytest.mark.parametrize("verb", ["", "/seal", "/cancel", "/pause", "/resume"])
async def test_a_bulk_that_is_not_there_is_not_found(shared_api: Served, verb: str) -> None:
    for bulk in (NOWHERE, "x"):
        problem(await shared_api.request("POST" if verb else "GET", f"/v1/bulks/{bulk}{verb}"), 404, "not_found")


# --- payloads ---


async def test_a_payload_comes_back_as_it_was(shared_api: Served) -> None:
    content = bytes(range(256)) * 3000
    response = await shared_api.post("/v1/payloads", content=content, headers={"content-type": "text/html"})
    assert response.status_code == 201
    payload = response.json()
    assert (payload["size"], payload["content_type"]) == (len(content), "text/html")
    back = await shared_api.get(response.headers["location"])
    assert back.content == content
    assert back.headers["content-type"].startswith("text/html")
    assert back.headers["content-disposition"].startswith("attachment")
    assert back.headers["x-content-type-options"] == "nosniff"


async def test_a_payload_may_be_named_in_an_input(shared_api: Served) -> None:
    payload = (await shared_api.post("/v1/payloads", content=b"abc")).json()["id"]
    good = await shared_api.post("/v1/models/echo/jobs", json={"input": {"image": {"$payload": payload}}})
    assert good.status_code == 202
    problem(await shared_api.post("/v1/models/echo/jobs", json={"input": {"$payload": NOWHERE}}), 422, "invalid_input")


async def test_a_payload_that_is_too_large_is_refused(serve: Serve) -> None:
    async def pieces() -> Any:
        for _ in range(3):
            yield b"x" * 50

    async with serve(ServerSettings(max_payload_bytes=100)) as api:
        assert problem(await api.post("/v1/payloads", content=b"x" * 101), 413, "too_large")["limit"] == 100
        problem(await api.post("/v1/payloads", content=pieces()), 413, "too_large")
        assert (await api.post("/v1/payloads", content=b"x" * 100)).status_code == 201


async def test_a_compressed_body_is_refused(shared_api: Served) -> None:
    response = await shared_api.post("/v1/payloads", content=b"x", headers={"content-encoding": "gzip"})
    problem(response, 422, "invalid_request")


async def test_a_payload_that_is_not_there_is_not_found(shared_api: Served) -> None:
    problem(await shared_api.get(f"/v1/payloads/{NOWHERE}"), 404, "not_found")


# --- many at once ---


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/echo/jobs", b'{"input": "xxxxxxxxxxxxxxxxxxxxxxxx"}'),
        ("/v1/bulks", b'{"model": "echo", "labels": ["xxxxxx"]}'),
    ],
)
async def test_bodies_that_come_at_once_have_room_for_so_many(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    monkeypatch.setattr(intake, "ROOM_BODIES", 0)
    monkeypatch.setattr(intake, "LEAST_ROOM_BYTES", 3 * len(body))
    halfway, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:30]
        halfway.release()
        await go_on.wait()
        yield body[30:]

    async with serve() as api:
        coming = [asyncio.ensure_future(api.post(path, content=slow())) for _ in range(3)]
        for _ in coming:
            await asyncio.wait_for(halfway.acquire(), 10)
        refused = await api.post(path, content=body)
        assert problem(refused, 503, "unavailable")["retryable"]
        assert refused.headers["retry-after"] == "1"
        go_on.set()
        assert {response.status_code for response in await asyncio.gather(*coming)} <= {201, 202}
        for _ in range(5):
            assert (await api.post(path, content=body)).status_code in {201, 202}


# --- models, pools, status ---


async def test_models_are_listed_with_their_versions_and_backlog(api: Served) -> None:
    await submit(api, count=3)
    [echo, twin] = (await api.get("/v1/models")).json()["models"]
    assert (echo["name"], [version["name"] for version in twin["versions"]]) == ("echo", ["twin@1", "twin@2"])
    [version] = echo["versions"]
    assert (version["warm"], version["pools"], version["lane"]) == (False, ["local"], "firm")
    assert [queue["lane"] for queue in version["queues"]] == ["firm", "tolerant"]
    assert twin["versions"][1]["lane"] == "tolerant"


async def test_a_model_is_warm_once_a_consumer_says_that_it_loaded_it(api: Served) -> None:
    [echo] = [version for version in api.store.models() if version.model == "echo"]
    queue_ids = list(echo.queue_ids.values())
    owner = api.store.register_consumer(
        pool="local", host="h", pid=1, device="cpu", capacity="on_demand", queue_ids=queue_ids, lease_ms=30_000
    )
    stats = {"models": {"echo@1": {"loaded": True}}, "samples": []}
    api.store.renew(owner, lease_ms=30_000, state="ready", stats=stats)
    status = await answered(api, "/v1/status", lambda response: "consumers" in response.json()["pools"][0])
    [pool, _] = status.json()["pools"]
    assert [(one["id"], one["state"], one["models"]) for one in pool["consumers"]] == [
        (format_id(owner), "ready", ["echo@1"])
    ]
    assert (await api.get("/v1/models/echo")).json()["versions"][0]["warm"]
    assert "samples" not in pool["consumers"][0]["stats"]


async def test_one_version_is_shown_alone(shared_api: Served) -> None:
    assert [v["name"] for v in (await shared_api.get("/v1/models/twin@2")).json()["versions"]] == ["twin@2"]
    assert len((await shared_api.get("/v1/models/twin")).json()["versions"]) == 2
    problem(await shared_api.get("/v1/models/nope"), 404, "unknown_model")


async def test_a_models_queues_are_paused_and_resumed(api: Served) -> None:
    paused = (await api.post("/v1/models/echo/pause?lane=firm")).json()
    assert [queue.get("paused", False) for queue in paused["versions"][0]["queues"]] == [True, False]
    resumed = (await api.post("/v1/models/echo/resume")).json()
    assert not any(queue.get("paused", False) for queue in resumed["versions"][0]["queues"])
    problem(await api.post("/v1/models/echo/pause?lane=fast"), 422, "invalid_request")
    problem(await api.post("/v1/models/nope/pause"), 404, "unknown_model")


async def test_pools_are_listed(shared_api: Served) -> None:
    pools = (await shared_api.get("/v1/pools")).json()["pools"]
    assert [(pool["name"], pool["capacity"], pool["models"]) for pool in pools] == [
        ("local", "on_demand", ["echo"]),
        ("spot", "spot", ["twin"]),
    ]


def decided(api: Served, *, pool: str = "local", replicas: int = 2, seconds_ago: int = 3) -> PoolDecision:
    return PoolDecision(
        pool=pool,
        replicas=replicas,
        live=1,
        reason="40 jobs",
        backlog_jobs=40,
        backlog_seconds=12.5,
        decided_at_ms=api.store.now_ms() - seconds_ago * 1000,
    )


async def test_a_pool_shows_the_last_decision_and_how_old_it_is(api: Served) -> None:
    made = decided(api)
    api.store.report_decision(made)
    api.store.report_decision(msgspec.structs.replace(made, pool="spot", decided_at_ms=made.decided_at_ms - 58_000))
    api.store.report_decision(msgspec.structs.replace(made, pool="no longer configured"))

    [local, spot] = (await api.get("/v1/pools")).json()["pools"]

    decision = local["decision"]
    assert (decision["replicas"], decision["live"], decision["reason"]) == (2, 1, "40 jobs")
    assert (decision["backlog_jobs"], decision["backlog_seconds"]) == (40, 12.5)
    assert 3 <= decision["age_seconds"] < 60
    assert "stale" not in decision
    assert spot["decision"]["stale"]
    assert spot["decision"]["age_seconds"] > 60
    shown = (await api.get("/v1/status")).json()["pools"]
    assert [pool["decision"]["reason"] for pool in shown] == ["40 jobs", "40 jobs"]


async def test_a_decision_is_shown_with_its_rule_its_deadline_and_what_the_pool_cost(api: Served) -> None:
    now_ms = api.store.now_ms()
    made = msgspec.structs.replace(
        decided(api), rule="deadline", binding_deadline_ms=now_ms + 60_000, unmeetable_jobs=3, zones={"a": 2}
    )
    api.store.report_decision(made)
    hour = now_ms // 3_600_000
    spent = [SpendRow(pool="local", hour=hour, replica_seconds=1800.0, dollars=0.0)]
    api.store.record_signals(spent=spent, learned_values={})

    [local, _] = (await api.get("/v1/pools")).json()["pools"]

    decision = local["decision"]
    assert (decision["rule"], decision["unmeetable_jobs"], decision["zones"]) == ("deadline", 3, {"a": 2})
    assert decision["binding_deadline"] == rfc3339(now_ms + 60_000)
    assert local["spent"] == {"hours_this_hour": 0.5, "hours_this_month": 0.5}, "no price: hours of consumers"


async def test_a_pool_is_pinned_and_paused_by_hand(api: Served) -> None:
    pinned = await api.post("/v1/pools/local/pin", json={"replicas": 1})
    paused = await api.post("/v1/pools/local/pause")
    assert (pinned.json()["pinned"], paused.json()["pinned"], paused.json()["paused"]) == (1, 1, True)
    assert api.store.overrides()["local"] == PoolOverride(pool="local", pinned=1, is_paused=True)

    await api.post("/v1/pools/local/resume")
    shown = (await api.post("/v1/pools/local/unpin")).json()
    assert "pinned" not in shown
    assert "paused" not in shown

    problem(await api.post("/v1/pools/local/pin", json={"replicas": 99}), 422, "invalid_request")
    problem(await api.post("/v1/pools/local/pin"), 422, "invalid_request")
    problem(await api.post("/v1/pools/nope/pause"), 404, "not_found")


async def test_keda_is_told_the_replicas_that_were_decided(api: Served) -> None:
    for pool, replicas in (("local", 3), ("spot", 0)):
        api.store.report_decision(decided(api, pool=pool, replicas=replicas))

    answers = [(await api.get(SCALE_PATH.format(pool=pool))).json() for pool in ("local", "spot")]

    assert [answer[SCALE_VALUE] for answer in answers] == [3, 0]
    assert answers[0]["reason"] == "40 jobs"


async def test_a_number_that_may_mislead_is_not_told(api: Served) -> None:
    path = SCALE_PATH.format(pool="local")
    assert "no scaler" in problem(await api.get(path), 503, "unavailable")["detail"]
    api.store.report_decision(decided(api, seconds_ago=61))
    assert "61 s old" in problem(await api.get(path), 503, "unavailable")["detail"]
    api.store.report_decision(decided(api, seconds_ago=50))
    assert (await api.get(path)).status_code == 200


async def test_the_number_of_an_unknown_pool_is_not_found(shared_api: Served) -> None:
    path = SCALE_PATH.format(pool="nope")
    assert problem(await shared_api.get(path), 404, "not_found")["allowed"] == ["local", "spot"]


async def test_the_number_has_a_scope_of_its_own(serve: Serve) -> None:
    async with serve() as api:
        api.store.report_decision(decided(api))

        async def with_key(scope: str, path: str) -> httpx.Response:
            made = (await api.post("/v1/keys", json={"name": "x", "scopes": [scope]})).json()
            return await api.get(path, headers={"authorization": f"Bearer {made['key']}"})

        path = SCALE_PATH.format(pool="local")
        assert (await with_key("scale", path)).json()[SCALE_VALUE] == 2
        problem(await with_key("jobs", path), 403, "forbidden")
        problem(await with_key("scale", "/v1/pools"), 403, "forbidden")


async def test_status_tells_of_the_whole_system(api: Served) -> None:
    ids = await submit(api, count=3)
    api.finish(ids[:1])
    status = (await api.get("/v1/status")).json()
    [queue] = [queue for queue in status["queues"] if (queue["model"], queue["lane"]) == ("echo@1", "firm")]
    assert queue["finished"] == {"succeeded": 1}
    assert status["broker"] == "up"
    assert "sqlite" in status["database"]


async def test_health_and_readiness(api: Served) -> None:
    assert (await api.get("/healthz")).json() == {"status": "ok"}
    ready = await answered(api, "/readyz", lambda response: response.status_code == 200)
    assert ready.json() == {
        "status": "ok",
        "checks": {"database": "ok", "schema": migrate.newest(), "role": "leader", "broker": "up"},
    }


async def test_without_a_database_it_is_not_ready(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> str:
        raise Unavailable("the database does not answer")

    await answered(api, "/readyz", lambda response: response.status_code == 200)
    monkeypatch.setattr(api.store, "probe", away)
    response = await answered(api, "/readyz", lambda response: response.status_code == 503)
    assert (response.status_code, response.json()["checks"]["database"]) == (503, "unavailable")
    assert (await api.get("/healthz")).status_code == 200


async def test_with_a_schema_that_does_not_fit_it_is_not_ready(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.store, "probe", lambda: "1000")
    response = await answered(api, "/readyz", lambda response: response.status_code == 503)
    assert response.json()["checks"]["database"] == "its schema does not fit this version of batchyard"


async def test_anybody_may_ask_for_readiness_and_the_database_is_asked_once_a_second(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counter[str]()

    def probe() -> str | None:
        asked["probe"] += 1
        return migrate.newest()

    monkeypatch.setattr(api.store, "probe", probe)
    began = time.monotonic()
    await asyncio.gather(*(api.get("/readyz") for _ in range(50)))
    assert asked["probe"] <= 1 + time.monotonic() - began


async def test_metrics_show_backlog_and_requests(api: Served) -> None:
    await submit(api, count=2)
    text = (await api.get("/metrics")).text
    assert 'batchyard_backlog_jobs{lane="firm",model="echo@1",state="queued"} 2.0' in text
    assert 'batchyard_jobs_submitted_total{lane="firm",model="echo@1"} 2.0' in text
    assert 'route="/v1/models/{model}/jobs",status="202"' in text


# --- keys and tenants ---


async def test_keys_open_their_tenants_door_alone(serve: Serve) -> None:
    async with serve() as api:
        assert (await api.post("/v1/tenants", json={"name": "acme", "weight": 2})).status_code == 201
        assert (await api.post("/v1/tenants", json={"name": "acme"})).status_code == 409
        assert [t["name"] for t in (await api.get("/v1/tenants")).json()["tenants"]] == ["default", "acme"]
        made = await api.post("/v1/keys", json={"name": "ci", "tenant": "acme", "expires_in_seconds": 60})
        assert made.status_code == 201
        key = made.json()
        assert made.headers["cache-control"] == "no-store"
        assert key["key"].startswith(f"by_{key['prefix']}_")
        [own] = await submit(api)
        bearer = {"authorization": f"Bearer {key['key']}"}
        for foreign in (
            await api.get(f"/v1/jobs/{own}", headers=bearer),
            await api.post(f"/v1/jobs/{own}/cancel", headers=bearer),
            await api.delete(f"/v1/jobs/{own}", headers=bearer),
            await api.patch(f"/v1/jobs/{own}", json={"priority": 1}, headers=bearer),
        ):
            problem(foreign, 404, "not_found")
        assert (await api.get("/v1/jobs", headers=bearer)).json()["jobs"] == []
        for path in ("/v1/keys", "/v1/tenants", "/metrics", "/v1/status"):
            problem(await api.get(path, headers=bearer), 403, "forbidden")
        problem(await api.post("/v1/models/echo/pause", headers=bearer), 403, "forbidden")
        [listed] = (await api.get("/v1/keys")).json()["keys"]
        assert "key" not in listed
        assert key["key"] not in json.dumps(listed)
        assert "revoked_at" in (await api.delete(f"/v1/keys/{key['prefix']}")).json()


async def test_foreign_bulks_and_payloads_are_not_found(serve: Serve) -> None:
    async with serve() as api:
        await api.post("/v1/tenants", json={"name": "acme"})
        key = (await api.post("/v1/keys", json={"name": "ci", "tenant": "acme"})).json()["key"]
        bearer = {"authorization": f"Bearer {key}"}
        bulk = (await create_bulk(api))["id"]
        payload = (await api.post("/v1/payloads", content=b"abc")).json()["id"]
        for method, path in (
            ("GET", f"/v1/bulks/{bulk}"),
            ("POST", f"/v1/bulks/{bulk}/seal"),
            ("POST", f"/v1/bulks/{bulk}/cancel"),
            ("POST", f"/v1/bulks/{bulk}/pause"),
            ("GET", f"/v1/bulks/{bulk}/results"),
            ("GET", f"/v1/payloads/{payload}"),
        ):
            problem(await api.request(method, path, headers=bearer), 404, "not_found")
        assert (await api.get("/v1/bulks", headers=bearer)).json()["bulks"] == []


async def test_where_keys_are_required_everything_but_health_and_documents_asks_for_one(serve: Serve) -> None:
    async with serve(ServerSettings(require_keys=True)) as api:
        for path in (
            "/v1/jobs",
            "/v1/models",
            "/v1/pools",
            "/v1/pools/local/scale",
            "/v1/status",
            "/metrics",
            "/v1/keys",
            f"/v1/jobs/{NOWHERE}",
        ):
            response = await api.get(path)
            problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await api.get(path)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        '{"name": ""}',
        "{}",
        '{"name": "x", "scopes": []}',
        '{"name": "x", "scopes": ["root"]}',
        '{"name": "x", "tenants": "y"}',
    ],
)
async def test_a_wrong_key_request_is_refused(shared_api: Served, body: str) -> None:
    problem(await shared_api.post("/v1/keys", content=body), 422, "invalid_request")


async def test_a_key_for_an_unknown_tenant_is_refused(shared_api: Served) -> None:
    problem(await shared_api.post("/v1/keys", json={"name": "x", "tenant": "nobody"}), 404, "not_found")
    problem(await shared_api.delete("/v1/keys/abcdefgh"), 404, "not_found")


@pytest.mark.parametrize("name", ["", "Acme", "a b", "-x", "x" * 64, "x\n"])
async def test_a_wrong_tenant_name_is_refused(shared_api: Served, name: str) -> None:
    problem(await shared_api.post("/v1/tenants", json={"name": name}), 422, "invalid_request")


# --- anything else ---


async def test_unknown_paths_and_methods_are_problems_too(shared_api: Served) -> None:
    problem(await shared_api.get("/v1/nothing"), 404, "not_found")
    problem(await shared_api.get("/"), 404, "not_found")
    response = await shared_api.put("/v1/bulks")
    assert problem(response, 405, "method_not_allowed")["allowed"] == ["GET", "POST"]
    assert response.headers["allow"] == "GET, POST"
    assert problem(await shared_api.put(f"/v1/jobs/{NOWHERE}"), 405, "method_not_allowed")["allowed"] == [
        "DELETE",
        "GET",
        "PATCH",
    ]
    problem(await shared_api.post("/docs"), 405, "method_not_allowed")


async def test_another_host_without_a_key_is_refused(shared_api: Served) -> None:
    problem(await shared_api.get("/v1/jobs", headers={"host": "evil.example"}), 403, "forbidden")
    problem(await shared_api.get("/v1/jobs", headers={"origin": "https://evil.example"}), 403, "forbidden")


async def test_a_fault_of_ours_tells_nothing(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.store, "list_bulks", broken)
    response = await api.get("/v1/bulks")
    problem(response, 500, "server_error")
    assert "secret" not in response.text
