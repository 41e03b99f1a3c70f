"""POST /v1/models/{model}/jobs and POST /v1/bulks/{id}/jobs over a real server and database."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec

from batchyard.jobs import Submission, format_id
from batchyard.store.base import BulkConfig
from tests.services.api.yard import Yard


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert (answer.status_code, document["status"], document["code"]) == (status, status, code), answer.text
    return document


def stored(yard: Yard) -> int:
    return sum(row.jobs for row in yard.store.recount())


def test_one_job_from_submission_to_result(yard: Yard) -> None:
    answer = yard.client.post(
        "/v1/models/echo/jobs", json={"input": {"a": [1, 2]}, "custom_id": "mine", "labels": ["l"]}
    )
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert (job["model"], job["lane"], job["state"]) == ("echo@1", "firm", "queued")

    waiting = yard.client.get(answer.headers["location"]).json()
    assert (waiting["state"], waiting["position"], waiting["custom_id"], waiting["labels"]) == (
        "queued",
        0,
        "mine",
        ["l"],
    )
    assert waiting["waits_because"]["code"] in {"model_loading", "no_consumer"}

    yard.finish([job["id"]])
    done = yard.client.get(answer.headers["location"]).json()
    assert (done["state"], done["result"], done["cost"]) == ("succeeded", {"a": [1, 2]}, 1)
    packed = yard.client.get(answer.headers["location"], headers={"Accept": "application/msgpack"})
    assert packed.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(packed.content)["result"] == {"a": [1, 2]}


def test_several_jobs_are_answered_in_order(yard: Yard) -> None:
    ids = yard.submit("a", "b", "c", custom_ids=["1", None, "3"])
    assert ids == sorted(ids)
    yard.finish(ids)
    answers = yard.client.post("/v1/jobs/lookup", json={"ids": ids}).json()["jobs"]
    assert [(job["result"], job["index"], job.get("custom_id")) for job in answers] == [
        ("a", 0, "1"),
        ("b", 1, None),
        ("c", 2, "3"),
    ]


def test_fifty_at_once_under_one_key_make_one_job(yard: Yard) -> None:
    def submit(_: int) -> dict[str, Any]:
        headers = {"Idempotency-Key": "the same"}
        answer = yard.client.post("/v1/models/echo/jobs", json={"input": "x"}, headers=headers)
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        return document

    with ThreadPoolExecutor(50) as callers:
        answers = list(callers.map(submit, range(50)))
    assert len({answer["id"] for answer in answers}) == 1
    assert sum(not answer.get("replayed") for answer in answers) == 1
    assert stored(yard) == 1

    yard.finish([answers[0]["id"]])
    again = submit(0)
    assert (again["state"], again["replayed"]) == ("succeeded", True)
    other = yard.client.post("/v1/models/echo/jobs", json={"input": "y"}, headers={"Idempotency-Key": "the same"})
    problem(other, 422, "idempotency_conflict")


def test_all_or_nothing(yard: Yard) -> None:
    inputs = [{"text": "a"}, {"text": 7}, {"text": "b"}, {}]
    answer = yard.client.post("/v1/models/strict/jobs", json={"inputs": inputs})
    document = problem(answer, 422, "invalid_input")
    assert (document["pointer"], document["index"]) == ("/inputs/1/text", 1)
    assert [fault["pointer"] for fault in document["errors"]] == ["/inputs/1/text", "/inputs/3"]
    assert stored(yard) == 0


def test_an_unknown_model_is_told_what_exists(yard: Yard) -> None:
    document = problem(yard.client.post("/v1/models/ehco/jobs", json={"input": 1}), 404, "unknown_model")
    assert document["nearest"] == "echo"
    assert {"echo", "strict"} <= set(document["allowed"])


BAD_BODIES = [
    b"",
    b"{",
    b'{"input": NaN}',
    b'{"input": 1, "input": 2}',
    b'{"input": "\\u0000"}',
    b'{"input": "\\ud800"}',
    b'{"input": 1, "priority": 10}',
]


def test_a_bad_body_is_refused_before_anything_is_stored(yard: Yard) -> None:
    for body in BAD_BODIES:
        problem(yard.client.post("/v1/models/echo/jobs", content=body), 422, "invalid_request")
    assert stored(yard) == 0


def test_what_is_too_large_is_told_the_limit(yard: Yard) -> None:
    url = "/v1/models/echo/jobs"
    assert problem(yard.client.post(url, json={"input": "x" * 200_000}), 413, "too_large")["limit"] == 100_000
    assert problem(yard.client.post(url, json={"input": "x" * 20_000}), 413, "too_large")["limit"] == 10_000
    assert problem(yard.client.post(url, json={"inputs": [1] * 501}), 413, "too_large")["limit"] == 500

    def unannounced() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    # A server that stops reading may cut the sender short before its answer is read.
    try:
        answer = yard.client.post(url, content=unannounced())
    except httpx.WriteError:
        return
    assert problem(answer, 413, "too_large")["limit"] == 100_000


def test_a_compressed_body_is_refused(yard: Yard) -> None:
    answer = yard.client.post("/v1/models/echo/jobs", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    problem(answer, 422, "invalid_request")


def test_a_full_queue_says_when_to_come_back(yard: Yard) -> None:
    for _ in range(4):
        yard.submit(*range(500))
    answer = yard.client.post("/v1/models/echo/jobs", json={"input": 1})
    assert problem(answer, 429, "queue_full")["limit"] == 2000
    assert int(answer.headers["retry-after"]) >= 1
    assert yard.client.post("/v1/models/strict/jobs", json={"input": {"text": "x"}}).status_code == 202
    assert stored(yard) == 2001


def test_without_a_database_the_answer_is_503_and_it_recovers(yard: Yard) -> None:
    yard.database.is_away = True
    answer = yard.client.post("/v1/models/echo/jobs", json={"input": 1})
    assert problem(answer, 503, "unavailable")["retryable"] is True
    assert int(answer.headers["retry-after"]) >= 1
    assert yard.client.get("/v1/jobs/0000000000000400").status_code == 503
    yard.database.is_away = False
    assert yard.client.post("/v1/models/echo/jobs", json={"input": 1}).status_code == 202


def test_a_job_that_ends_in_time_is_the_answer(yard: Yard) -> None:
    with ThreadPoolExecutor(1) as caller:
        asked = caller.submit(
            yard.client.post, "/v1/models/echo/jobs", json={"input": "x"}, headers={"Prefer": "wait=30"}
        )
        while not (page := yard.client.get("/v1/jobs").json()["jobs"]):
            pass
        yard.finish([page[0]["id"]])
        answer = asked.result()
    assert (answer.status_code, answer.json()["result"]) == (200, "x")
    assert answer.headers["preference-applied"] == "wait=30"
    late = yard.client.post("/v1/models/echo/jobs", json={"input": "x"}, headers={"Prefer": "wait=1"})
    assert (late.status_code, late.json()["state"]) == (202, "queued")


def test_jobs_that_are_committed_are_accepted_whatever_happens_to_the_wait(yard: Yard) -> None:
    yard.database.failing = {"get_jobs"}
    answer = yard.client.post("/v1/models/echo/jobs", json={"input": "x"}, headers={"Prefer": "wait=5"})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert stored(yard) == 1


def test_a_payload_must_be_the_tenants_own(yard: Yard) -> None:
    payload = yard.client.post("/v1/payloads", content=b"bytes", headers={"Content-Type": "image/png"}).json()["id"]
    reference = {"text": {"$payload": payload}}
    assert yard.client.post("/v1/models/strict/jobs", json={"input": reference}).status_code == 202
    unknown = {"text": {"$payload": format_id(5)}}
    problem(yard.client.post("/v1/models/strict/jobs", json={"input": unknown}), 422, "invalid_input")


# --- bulks -----------------------------------------------------------------------------------------------------------


def test_a_chunk_is_answered_as_before_even_after_the_seal(yard: Yard) -> None:
    bulk = yard.bulk(priority=7)
    first = yard.feed(bulk, ["a", "b"], key="0")
    assert first.status_code == 202
    assert (first.json()["accepted"], first.json().get("replayed")) == (2, None)
    assert yard.client.post(f"/v1/bulks/{bulk}/seal").is_success
    again = yard.feed(bulk, ["a", "b"], key="0")
    assert again.status_code == 202
    assert again.json() == {**first.json(), "replayed": True}
    problem(yard.feed(bulk, ["a", "c"], key="0"), 422, "idempotency_conflict")
    problem(yard.feed(bulk, ["c"], key="2"), 409, "conflict")
    assert stored(yard) == 2
    job = yard.client.get(f"/v1/jobs/{first.json()['first_id']}").json()
    assert (job["bulk_id"], job["index"], job["priority"]) == (bulk, 0, 7)


def test_a_chunk_of_lines(yard: Yard) -> None:
    bulk = yard.bulk(model="strict")
    url = f"/v1/bulks/{bulk}/jobs"
    headers = {"Content-Type": "application/x-ndjson"}
    bad = b'{"input": {"text": "a"}}\n{"input": {"text": 1}}\n'
    document = problem(yard.client.post(url, content=bad, headers=headers), 422, "invalid_input")
    assert (document["index"], document["pointer"]) == (1, "/input/text")
    assert stored(yard) == 0
    good = b'{"input": {"text": "a"}, "custom_id": "one"}\n{"input": {"text": "b"}}\n'
    assert yard.client.post(url, content=good, headers=headers).json()["accepted"] == 2
    assert yard.client.get(f"/v1/bulks/{bulk}").json()["jobs"] == 2


def test_the_chunks_of_a_bulk_are_numbered_on(yard: Yard) -> None:
    bulk = yard.bulk()
    ids = [yard.feed(bulk, list(range(100)), key=str(start)).json()["first_id"] for start in (0, 100, 200)]
    assert [yard.client.get(f"/v1/jobs/{number}").json()["index"] for number in ids] == [0, 100, 200]


def test_a_bulk_of_another_tenant_is_not_there(yard: Yard) -> None:
    other = yard.store.create_tenant("other")
    queue = yard.store.models()[0].queue_ids[yard.store.models()[0].default_lane]
    bulk = yard.store.create_bulk(BulkConfig(tenant_id=other.id, queue_id=queue, defaults=b'{"model":"echo"}'))
    problem(yard.feed(format_id(bulk.id), ["a"], key="0"), 404, "not_found")
    problem(yard.feed("nonsense", ["a"], key="0"), 404, "not_found")
    submission = Submission(tenant_id=other.id, queue_id=queue, inputs=[b"1"], costs=[1])
    [accepted] = yard.store.submit([submission])
    assert not isinstance(accepted, Exception)
    foreign = format_id(accepted.ids[0])
    problem(yard.client.get(f"/v1/jobs/{foreign}"), 404, "not_found")
    assert yard.client.post("/v1/jobs/lookup", json={"ids": [foreign]}).json() == {"jobs": [], "missing": [foreign]}
