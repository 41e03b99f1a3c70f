"""Dead jobs over HTTP: listed with what they died of, and redriven."""

from collections.abc import Sequence
from typing import Any

import pytest

from batchyard.jobs import parse_id
from tests.services.api.test_rest import until
from tests.services.api.yard import Yard


@pytest.fixture
def foreign(yard: Yard) -> dict[str, str]:
    """Headers of another tenant."""
    yard.client.post("/v1/tenants", json={"name": "acme"})
    key = yard.client.post("/v1/keys", json={"name": "k", "tenant": "acme"}).json()["key"]
    return {"authorization": f"Bearer {key}"}


def dead(yard: Yard, count: int, **members: Any) -> list[str]:
    ids = yard.submit(*["fail"] * count, **members)
    yard.finish(ids)
    return ids


def step(yard: Yard, **request: Any) -> dict[str, Any]:
    answer = yard.client.post("/v1/jobs/redrive", json=request)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def ids_of(answer: dict[str, Any]) -> Sequence[str]:
    return [job["id"] for job in answer["jobs"]]


def test_dead_jobs_are_listed_by_what_they_died_of_and_when(yard: Yard) -> None:
    first = dead(yard, 2)
    ended = yard.client.get(f"/v1/jobs/{first[0]}").json()["finished_at"]
    [done] = yard.submit("fine")
    yard.finish([done])
    listed = yard.client.get("/v1/jobs", params={"state": "failed", "error": "model_error"}).json()["jobs"]
    assert [(job["id"], job["error"]["message"]) for job in listed] == [(each, "it failed") for each in first[::-1]]
    for query, found in (
        ({"error": "crash_loop"}, []),
        ({"error": "model_error", "finished_from": ended}, first[::-1]),
        ({"state": "failed", "finished_before": ended}, []),
        ({"state": "succeeded", "finished_from": "2020-01-01T00:00:00+01:00"}, [done]),
    ):
        assert ids_of(yard.client.get("/v1/jobs", params=query).json()) == found, query
    for wrong in ("yesterday", "2020-01-01T00:00:00", "2020-13-01T00:00:00Z"):
        refused = yard.client.get("/v1/jobs", params={"finished_from": wrong})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request"), wrong


def test_one_is_redriven_and_both_say_so(yard: Yard) -> None:
    [old] = dead(yard, 1, labels=["l"], priority=7)
    answer = yard.client.post(f"/v1/jobs/{old}/redrive")
    made = answer.json()
    assert (answer.status_code, made["model"], made["state"]) == (202, "echo@1", "queued")
    assert answer.headers["location"] == f"/v1/jobs/{made['id']}"
    assert yard.client.get(f"/v1/jobs/{old}").json()["redriven_as"] == made["id"]
    new = yard.client.get(f"/v1/jobs/{made['id']}").json()
    assert (new["redrive_of"], new["labels"], new["priority"]) == (old, ["l"], 7)
    again = yard.client.post(f"/v1/jobs/{old}/redrive", json={"to": "echo@1"})
    assert (again.status_code, again.json()["id"], again.json()["replayed"]) == (202, made["id"], True)
    listed = yard.client.get("/v1/jobs", params={"state": "failed"}).json()["jobs"]
    assert [(job["id"], job["redriven_as"]) for job in listed] == [(old, made["id"])]
    found = yard.client.post("/v1/jobs/lookup", json={"ids": [old]}).json()["jobs"]
    assert found[0]["redriven_as"] == made["id"]
    # Its consumers hear of it as of any other.
    yard.finish([made["id"]])


def test_what_cannot_be_redriven_says_why(yard: Yard) -> None:
    [queued] = yard.submit("a")
    [gone] = dead(yard, 1)
    yard.client.delete(f"/v1/jobs/{gone}")
    for job, status, code in (
        (queued, 409, "conflict"),
        (gone, 410, "gone"),
        ("0123456789abcdef", 404, "not_found"),
        ("none", 404, "not_found"),
    ):
        answer = yard.client.post(f"/v1/jobs/{job}/redrive")
        assert (answer.status_code, answer.json()["code"]) == (status, code), job
    [old] = dead(yard, 1)
    for body, code in (
        ({"to": "nothing"}, "unknown_model"),
        ({"to": "strict"}, "invalid_input"),
        ({"too": "echo"}, "invalid_request"),
    ):
        refused = yard.client.post(f"/v1/jobs/{old}/redrive", json=body)
        assert refused.json()["code"] == code
    told = step(yard, ids=[queued, gone, old])
    assert [job.get("refused", {}).get("code") for job in told["jobs"]] == ["conflict", "gone", None]
    assert told["count"] == 1


def test_many_are_redriven_by_a_filter_step_by_step(yard: Yard) -> None:
    marked = dead(yard, 5, labels=["night"])
    dead(yard, 2)
    where = {"label": "night", "error": "model_error", "model": "echo"}
    foreseen = step(yard, where=where, dry_run=True)
    assert (foreseen["count"], ids_of(foreseen)) == (5, marked[::-1])
    seen: list[str] = []
    after: str | None = None
    while True:
        taken = step(yard, where=where, limit=2, **({} if after is None else {"after": after}))
        seen += ids_of(taken)
        after = taken.get("next")
        if after is None:
            break
    assert seen == marked[::-1]
    again = step(yard, where=where)
    assert (again["count"], {job["already"] for job in again["jobs"]}) == (0, {True})
    new = [job["redriven_as"] for job in again["jobs"]]
    yard.finish(new)
    assert len(yard.client.get("/v1/jobs", params={"state": "queued"}).json()["jobs"]) == 0


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"ids": []},
        {"ids": ["0" * 16] * 1001},
        {"ids": ["0" * 16], "where": {}},
        {"where": {"state": "succeeded"}},
        {"where": {"finished_from": "2020-01-01T00:00:00"}},
        {"where": {}, "limit": 0},
        {"where": {}, "after": "zz"},
        {"where": {"unknown": 1}},
    ],
)
def test_faulty_requests_are_refused(yard: Yard, request_: dict[str, Any]) -> None:
    answer = yard.client.post("/v1/jobs/redrive", json=request_)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_a_full_queue_takes_what_it_can_and_says_when_to_come_back(yard: Yard) -> None:
    old = dead(yard, 150)

    def fill() -> int:
        # Refused where the count is old: the next look is newer.
        yard.client.post("/v1/models/echo/jobs", json={"inputs": ["x"] * 100})
        queued: int = yard.client.get("/v1/models/echo").json()["versions"][0]["queues"][0]["queued"]
        return queued

    until(fill, lambda queued: queued >= 1_900)
    refused = yard.client.post("/v1/jobs/redrive", json={"ids": old})
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    already = [job.get("already", False) for job in step(yard, ids=old, dry_run=True)["jobs"]]
    assert already == sorted(already, reverse=True)
    assert not already[-1]


def test_a_tenant_redrives_nobody_elses_jobs(yard: Yard, foreign: dict[str, str]) -> None:
    [old] = dead(yard, 1, labels=["l"])
    answer = yard.client.post(f"/v1/jobs/{old}/redrive", headers=foreign)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    told = yard.client.post("/v1/jobs/redrive", json={"ids": [old]}, headers=foreign).json()
    assert [(job["id"], job["refused"]["code"], len(job)) for job in told["jobs"]] == [(old, "not_found", 2)]
    for where in ({}, {"label": "l"}, {"error": "model_error"}):
        assert yard.client.post("/v1/jobs/redrive", json={"where": where}, headers=foreign).json()["jobs"] == []
    assert yard.client.get("/v1/jobs", params={"error": "model_error"}, headers=foreign).json()["jobs"] == []
    made = yard.client.post(f"/v1/jobs/{old}/redrive").json()["id"]
    assert yard.client.get(f"/v1/jobs/{made}", headers=foreign).status_code == 404
    view = yard.store.get_jobs([parse_id(made) or 0], tenant_id=1)
    assert len(view) == 1


def test_payloads_go_along(yard: Yard) -> None:
    payload = yard.client.post("/v1/payloads", content=b"bytes").json()["id"]
    [old] = yard.submit({"image": {"$payload": payload}})
    number = parse_id(old) or 0
    yard.store.cancel(number, tenant_id=1)
    made = yard.client.post(f"/v1/jobs/{old}/redrive").json()["id"]
    assert yard.client.delete(f"/v1/jobs/{old}").status_code == 204
    assert yard.client.get(f"/v1/payloads/{payload}").content == b"bytes"
    yard.finish([made])
    assert yard.client.delete(f"/v1/jobs/{made}").status_code == 204
    assert yard.client.get(f"/v1/payloads/{payload}").status_code == 404
