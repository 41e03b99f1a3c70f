"""Webhooks over HTTP: endpoints, what receivers hear, and how deliveries end; by real servers on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from batchyard import schemas, webhooks
from batchyard.errors import Unauthorized
from tests.services.api.test_rest import until
from tests.services.api.yard import Yard
from tests.services.receiver import Heard, Receiver, receiving
from tests.unit.producer.contract import validator


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def endpoint(yard: Yard, url: str, *events: str) -> dict[str, Any]:
    answer = yard.client.post("/v1/webhooks", json={"url": url, **({"events": events} if events else {})})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def read(heard: Heard, secret: str | list[str]) -> dict[str, Any]:
    """A message that was signed with the secret and is as documented."""
    event = webhooks.verify(heard.body, heard.headers, secret)
    kind = "BulkFinished" if event["type"] == "bulk.finished" else "JobEnded"
    validator(f"#/components/schemas/{kind}").validate(event)
    return event


def secret_for_named(yard: Yard) -> list[str]:
    """Of the tenant's endpoint for the URLs that jobs and bulks name."""
    (one,) = [each for each in yard.client.get("/v1/webhooks").json()["webhooks"] if "url" not in each]
    secrets: list[str] = yard.client.get(f"/v1/webhooks/{one['id']}/secret").json()["secrets"]
    return secrets


def deliveries(yard: Yard, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yard.client.get("/v1/webhook-deliveries", params=query).json()["deliveries"]
    return found


def delivered(yard: Yard, **query: str) -> list[dict[str, Any]]:
    """Once none is pending any more."""
    return until(lambda: deliveries(yard, **query), lambda found: {each["state"] for each in found} <= {"delivered"})


def test_an_endpoint_hears_of_jobs_that_end_and_of_bulks(yard: Yard, receiver: Receiver) -> None:
    one = endpoint(yard, f"{receiver.url}/all")
    done, broken, withdrawn = yard.submit("x", "fail", "y", custom_ids=["a", "b", "c"], labels=["night"])
    yard.finish([done, broken])
    yard.client.post(f"/v1/jobs/{withdrawn}/cancel")
    bulk = yard.bulk(labels=["l"])
    yard.client.post(f"/v1/bulks/{bulk}/seal")
    heard = receiver.messages(4)
    events = {(event := read(each, one["secret"]))["data"]["id"]: event for each in heard}
    assert {number: event["type"] for number, event in events.items()} == {
        done: "job.succeeded",
        broken: "job.failed",
        withdrawn: "job.cancelled",
        bulk: "bulk.finished",
    }
    assert events[done]["data"]["custom_id"] == "a"
    assert events[done]["data"]["labels"] == ["night"]
    assert "result" not in events[done]["data"]
    assert events[done]["timestamp"] == events[done]["data"]["finished_at"]
    assert events[broken]["data"]["error"]["code"] == "model_error"
    assert events[bulk]["data"]["finished"] is True
    assert {each.headers["webhook-id"] for each in heard} == {f"msg_{number}" for number in events}
    assert {each.path for each in heard} == {"/all"}
    rows = delivered(yard)
    assert {row.get("job_id") or row["bulk_id"]: row["event"] for row in rows} == {
        number: event["type"] for number, event in events.items()
    }
    assert {(row["status"], row["attempts"], row["webhook_id"]) for row in rows} == {(204, 1, one["id"])}
    assert [row["event"] for row in deliveries(yard, job_id=broken)] == ["job.failed"]
    assert [row["event"] for row in deliveries(yard, bulk_id=bulk)] == ["bulk.finished"]
    assert yard.metric('batchyard_webhook_attempts_total{outcome="delivered"}') == 4


def test_a_job_and_a_bulk_may_name_the_url_that_hears_of_them(yard: Yard, receiver: Receiver) -> None:
    (job,) = yard.submit("x", webhook=f"{receiver.url}/job?n=1")
    (quiet,) = yard.submit("x")
    bulk = yard.bulk(webhook=f"{receiver.url}/bulk")
    fed = yard.feed(bulk, ["a"], key="0").json()["first_id"]
    yard.client.post(f"/v1/bulks/{bulk}/seal")
    yard.finish([job, quiet, fed])
    heard = {each.path: read(each, secret_for_named(yard)) for each in receiver.messages(2)}
    assert {path: (event["type"], event["data"]["id"]) for path, event in heard.items()} == {
        "/job?n=1": ("job.succeeded", job),
        "/bulk": ("bulk.finished", bulk),
    }
    assert heard["/bulk"]["data"]["counts"] == {"succeeded": 1}
    assert len(delivered(yard)) == 2


def test_a_receiver_that_fails_is_tried_again_with_the_same_message(yard: Yard, receiver: Receiver) -> None:
    receiver.statuses += [500, 302, 429]
    one = endpoint(yard, receiver.url, "job.succeeded")
    (job,) = yard.submit("x")
    yard.finish([job])
    heard = receiver.messages(4)
    assert len({(each.headers["webhook-id"], each.body) for each in heard}) == 1
    assert [read(each, one["secret"])["data"]["id"] for each in heard] == [job] * 4
    (row,) = delivered(yard)
    assert (row["attempts"], row["status"], row.get("error")) == (4, 204, None)


def test_a_receiver_may_ask_for_more_time(yard: Yard) -> None:
    with receiving([503], retry_after="300") as receiver:
        endpoint(yard, receiver.url)
        (job,) = yard.submit("x")
        yard.finish([job])
        receiver.next()
        (row,) = until(lambda: deliveries(yard), lambda rows: rows[0].get("status") == 503)
        assert row["error"] == "the receiver answered 503"
        assert row["state"] == "pending"
        wait_ms = schemas.parse_rfc3339(row["next_attempt_at"]) - yard.store.now_ms()
        assert 200_000 < wait_ms <= 300_000


def test_after_the_last_attempt_it_is_dead_until_it_is_replayed(yard: Yard, receiver: Receiver) -> None:
    receiver.statuses += [500] * 4
    one = endpoint(yard, receiver.url)
    (job,) = yard.submit("x")
    yard.finish([job])
    (row,) = until(lambda: deliveries(yard), lambda rows: rows[0]["state"] == "dead")
    assert (row["attempts"], row["error"]) == (4, "the receiver answered 500")
    assert deliveries(yard, state="dead", webhook_id=one["id"]) == [row]
    again = yard.client.post("/v1/webhook-deliveries/replay", json={"webhook_id": one["id"]})
    assert (again.status_code, again.json()) == (200, {"count": 1})
    heard = receiver.messages(5)
    assert len({each.headers["webhook-id"] for each in heard}) == 1
    delivered(yard)
    # What was delivered is sent again only where that is asked for.
    for asked, count in (
        ({"webhook_id": one["id"]}, 0),
        ({"ended_from": "2020-01-01T00:00:00Z"}, 0),
        ({"ended_before": "2020-01-01T00:00:00Z", "state": "delivered"}, 0),
        ({"delivery_id": row["id"]}, 1),
    ):
        replayed = yard.client.post("/v1/webhook-deliveries/replay", json=asked)
        assert replayed.json() == {"count": count}, asked
    assert receiver.next().headers["webhook-id"] == f"msg_{job}"


def test_a_receiver_that_is_gone_disables_its_endpoint(yard: Yard, receiver: Receiver) -> None:
    receiver.statuses += [410]
    one = endpoint(yard, receiver.url)
    first, second = yard.submit("x", "y")
    yard.finish([first])
    (row,) = until(lambda: deliveries(yard), lambda rows: rows[0]["state"] == "dead")
    assert row["attempts"] == 1
    (shown,) = yard.client.get("/v1/webhooks").json()["webhooks"]
    assert shown["disabled_because"] == "the receiver answered 410"
    yard.finish([second])
    assert len(deliveries(yard)) == 1
    enabled = yard.client.post(f"/v1/webhooks/{one['id']}/enable").json()
    assert "disabled_at" not in enabled


def test_secrets_are_rotated_with_an_overlap_and_shown_where_asked_for(yard: Yard, receiver: Receiver) -> None:
    one = endpoint(yard, receiver.url)
    path = f"/v1/webhooks/{one['id']}"
    rotated = yard.client.post(f"{path}/rotate", json={"overlap_seconds": 600})
    assert rotated.headers["cache-control"] == "no-store"
    new, old = rotated.json()["secrets"]
    assert old == one["secret"]
    assert yard.client.get(f"{path}/secret").json() == rotated.json()
    (job,) = yard.submit("x")
    yard.finish([job])
    heard = receiver.next()
    for secret in (new, old):
        read(heard, secret)
    with pytest.raises(Unauthorized):
        read(heard, webhooks.new_secret())
    assert "secret" not in yard.client.get("/v1/webhooks").text


def test_a_disabled_endpoint_hears_of_nothing_and_a_deleted_one_is_nowhere(yard: Yard, receiver: Receiver) -> None:
    one = endpoint(yard, receiver.url)
    path = f"/v1/webhooks/{one['id']}"
    assert yard.client.post(f"{path}/disable").json()["disabled_because"] == "disabled by its owner"
    (quiet,) = yard.submit("x")
    yard.finish([quiet])
    assert deliveries(yard) == []
    yard.client.post(f"{path}/enable")
    (job,) = yard.submit("x")
    yard.finish([job])
    assert receiver.next().headers["webhook-id"] == f"msg_{job}"
    assert yard.client.delete(path).status_code == 204
    assert deliveries(yard) == []
    for answer in (yard.client.delete(path), yard.client.post(f"{path}/enable"), yard.client.get(f"{path}/secret")):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_urls_that_lead_elsewhere_are_refused_wherever_they_stand(yard: Yard) -> None:
    for url in ("http://example.com/", "https://10.0.0.1/", "https://[fe80::1]/", "https://me@example.com/", "none"):
        for path, body, pointer in (
            ("/v1/webhooks", {"url": url}, "/url"),
            ("/v1/models/echo/jobs", {"input": "x", "webhook": url}, "/webhook"),
            ("/v1/bulks", {"model": "echo", "webhook": url}, "/webhook"),
        ):
            refused = yard.client.post(path, json=body)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request"), (url, path)
            assert refused.json()["pointer"] == pointer
    assert yard.client.get("/v1/webhooks").json() == {"webhooks": []}


def test_faulty_calls_are_refused_with_what_is_allowed(yard: Yard) -> None:
    post, url = yard.client.post, "https://example.com/"
    faulty: list[dict[str, object]] = [{"events": []}, {"events": ["job.started"]}, {"other": 1}, {"url": 5}]
    for members in faulty:
        assert post("/v1/webhooks", json={"url": url, **members}).status_code == 422, members
    for body in (
        {},
        {"state": "dead"},
        {"delivery_id": "x"},
        {"ended_from": "soon"},
        {"webhook_id": "1", "after": "y"},
    ):
        assert post("/v1/webhook-deliveries/replay", json=body).status_code == 422, body
    for query in ({"state": "lost"}, {"limit": "0"}, {"job_id": "x"}, {"after": "x"}, {"other": "x"}):
        assert yard.client.get("/v1/webhook-deliveries", params=query).status_code == 422, query


def test_pages_of_deliveries_and_steps_of_a_replay_go_on_where_they_ended(yard: Yard, receiver: Receiver) -> None:
    endpoint(yard, receiver.url)
    ids = yard.submit(*range(5))
    yard.finish(ids)
    receiver.messages(5)
    delivered(yard)
    first = yard.client.get("/v1/webhook-deliveries", params={"limit": 3}).json()
    second = yard.client.get("/v1/webhook-deliveries", params={"limit": 3, "after": first["next"]}).json()
    assert [len(page["deliveries"]) for page in (first, second)] == [3, 2]
    assert "next" not in second
    assert sorted(row["job_id"] for page in (first, second) for row in page["deliveries"]) == sorted(ids)


def test_a_jobs_deliveries_go_with_it(yard: Yard, receiver: Receiver) -> None:
    (job,) = yard.submit("x", webhook=receiver.url)
    yard.finish([job])
    receiver.next()
    delivered(yard)
    assert yard.client.delete(f"/v1/jobs/{job}").status_code == 204
    assert deliveries(yard) == []


def test_a_redriven_job_tells_whom_the_old_one_told(yard: Yard, receiver: Receiver) -> None:
    (job,) = yard.submit("fail", webhook=receiver.url)
    yard.finish([job])
    successor = yard.client.post(f"/v1/jobs/{job}/redrive").json()["id"]
    yard.client.post(f"/v1/jobs/{successor}/cancel")
    told = [json.loads(each.body) for each in receiver.messages(2)]
    assert {(event["type"], event["data"]["id"]) for event in told} == {
        ("job.failed", job),
        ("job.cancelled", successor),
    }


def test_an_outage_of_the_database_delays_and_loses_nothing(yard: Yard, receiver: Receiver) -> None:
    endpoint(yard, receiver.url)
    (job,) = yard.submit("x")
    yard.database.failing |= {"take_deliveries"}
    yard.finish([job])
    ended_ms = yard.store.now_ms()
    until(yard.store.now_ms, lambda now_ms: now_ms > ended_ms + 500)
    assert receiver.heard.empty()
    yard.database.failing.clear()
    assert receiver.next().headers["webhook-id"] == f"msg_{job}"
