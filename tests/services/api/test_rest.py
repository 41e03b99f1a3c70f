"""The calls that are not hot, over a real server and database."""

import time
from collections.abc import Callable
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from batchyard import exposition, telemetry
from batchyard.jobs import format_id
from tests.services.api.yard import Yard

T = TypeVar("T")


def until(look: Callable[[], T], is_it: Callable[[T], bool]) -> T:
    """What was looked for, once it is there."""
    end = time.monotonic() + 10
    while not is_it(seen := look()):
        assert time.monotonic() < end, seen
        time.sleep(0.01)
    return seen


def test_a_job_is_listed_amended_cancelled_and_forgotten(yard: Yard) -> None:
    one, two, three = yard.submit("a", "b", "c", labels=["l"])
    listed = yard.client.get("/v1/jobs", params={"label": "l", "limit": 2}).json()
    assert [job["id"] for job in listed["jobs"]] == [three, two]
    rest = yard.client.get("/v1/jobs", params={"label": "l", "after": listed["next"]}).json()
    assert [job["id"] for job in rest["jobs"]] == [one]
    amended = yard.client.patch(f"/v1/jobs/{three}", json={"priority": 9}).json()
    assert (amended["priority"], amended["position"]) == (9, 0)
    assert yard.client.post(f"/v1/jobs/{two}/cancel").json()["state"] == "cancelled"
    yard.finish([one, three])
    assert yard.client.delete(f"/v1/jobs/{one}").status_code == 204
    assert yard.client.get(f"/v1/jobs/{one}").status_code == 410
    assert [job["id"] for job in yard.client.get("/v1/jobs?state=succeeded").json()["jobs"]] == [three]


def test_a_bulk_is_paused_resumed_and_cancelled(yard: Yard) -> None:
    bulk = yard.bulk()
    assert yard.feed(bulk, ["a", "b"], key="0").status_code == 202
    assert yard.client.post(f"/v1/bulks/{bulk}/pause").json()["paused"]
    held = [int(job["id"], 16) for job in yard.client.get("/v1/jobs").json()["jobs"]]
    assert yard.claim(held) == []
    yard.client.post(f"/v1/bulks/{bulk}/resume")
    until(lambda: len(yard.claim(held[:1])), lambda claimed: claimed == 1)
    yard.client.post(f"/v1/bulks/{bulk}/cancel")

    def counts() -> dict[str, int]:
        seen: dict[str, int] = yard.client.get(f"/v1/bulks/{bulk}").json()["counts"]
        return seen

    until(counts, lambda seen: seen == {"running": 1, "cancelled": 1})


def test_a_payload_survives_and_is_its_tenants_own(yard: Yard) -> None:
    content = bytes(range(256)) * 8192
    made = yard.client.post("/v1/payloads", content=content, headers={"content-type": "image/png"}).json()
    back = yard.client.get(f"/v1/payloads/{made['id']}")
    assert (back.content, back.headers["content-type"]) == (content, "image/png")
    yard.client.post("/v1/tenants", json={"name": "acme"})
    key = yard.client.post("/v1/keys", json={"name": "k", "tenant": "acme"}).json()["key"]
    bearer = {"authorization": f"Bearer {key}"}
    assert yard.client.get(f"/v1/payloads/{made['id']}", headers=bearer).status_code == 404
    named = {"input": {"$payload": made["id"]}}
    assert yard.client.post("/v1/models/echo/jobs", json=named).status_code == 202
    assert yard.client.post("/v1/models/echo/jobs", json=named, headers=bearer).status_code == 422


def test_a_paused_queue_gives_no_jobs(yard: Yard) -> None:
    [job] = yard.submit("a")
    yard.client.post("/v1/models/echo/pause")
    assert yard.claim([int(job, 16)]) == []
    why = until(
        lambda: yard.client.get(f"/v1/jobs/{job}").json()["waits_because"]["code"], lambda code: code == "paused"
    )
    assert why == "paused"
    yard.client.post("/v1/models/echo/resume")
    assert len(yard.claim([int(job, 16)])) == 1


def test_what_consumers_report_is_shown(yard: Yard) -> None:
    registry = telemetry.new_registry()
    consumer = telemetry.ConsumerMetrics(registry)
    consumer.batch_jobs.labels("echo@1").observe(32)
    stats = {"models": {"echo@1": {"loaded": True}}, "samples": exposition.snapshot(registry)}
    yard.store.renew(yard.owner, lease_ms=600_000, state="ready", stats=stats)
    until(lambda: yard.client.get("/v1/models/echo").json()["versions"][0]["warm"], bool)
    families = {family.name: family for family in text_string_to_metric_families(yard.client.get("/metrics").text)}
    labels = {"consumer": format_id(yard.owner), "pool": "local", "model": "echo@1"}
    [total] = [s for s in families["batchyard_batch_size_jobs"].samples if s.name.endswith("_sum")]
    assert (total.labels, total.value) == (labels, 32)
    population = families["batchyard_consumers"].samples
    assert [(s.labels, s.value) for s in population] == [({"pool": "local", "state": "ready"}, 1)]


def test_without_a_database_every_call_says_when_to_come_back(yard: Yard) -> None:
    until(lambda: yard.client.get("/readyz").status_code, lambda status: status == 200)
    yard.database.is_away = True
    for method, path in (
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs/0123456789abcdef/cancel"),
        ("GET", "/v1/bulks"),
        ("POST", "/v1/payloads"),
        ("GET", "/v1/models"),
        ("GET", "/v1/keys"),
    ):
        answer = yard.client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), path
        assert int(answer.headers["retry-after"]) >= 1
    until(lambda: yard.client.get("/readyz").status_code, lambda status: status == 503)
    assert yard.client.get("/healthz").status_code == 200
    metrics = yard.client.get("/metrics")
    assert metrics.status_code == 200
    assert "batchyard_database_up 0.0" in metrics.text
    yard.database.is_away = False
    until(lambda: yard.client.get("/readyz").status_code, lambda status: status == 200)
    assert "batchyard_database_up 1.0" in yard.client.get("/metrics").text
