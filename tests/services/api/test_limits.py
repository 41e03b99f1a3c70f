"""What a tenant may use, over a real server and database: refused with 429, how long to wait, and which limit it is."""

import time

import httpx
import pytest

from batchyard.store.base import TenantLimits
from tests.services.api.test_rest import until
from tests.services.api.test_tenants import key_of
from tests.services.api.yard import Yard


@pytest.fixture
def acme(yard: Yard) -> dict[str, str]:
    yard.store.create_tenant("acme")
    return key_of(yard, "acme", "jobs")


def limit(yard: Yard, **limits: float) -> None:
    """Set the limits of acme, and wait until the API has heard of them."""
    before = yard.database.asked["tenants"]
    yard.store.set_tenant_limits("acme", TenantLimits(**limits))  # type: ignore[arg-type]
    until(lambda: yard.database.asked["tenants"], lambda times: times >= before + 2)


def submit(yard: Yard, key: dict[str, str], count: int = 1, *, size: int = 1) -> httpx.Response:
    return yard.client.post("/v1/models/echo/jobs", json={"inputs": ["x" * size] * count}, headers=key)


def upload(yard: Yard, key: dict[str, str], *, size: int) -> httpx.Response:
    return yard.client.post("/v1/payloads", content=b"x" * size, headers={**key, "content-type": "text/plain"})


def refusal(answer: httpx.Response, *, code: str, name: str) -> int:
    """The seconds to wait, after the rest of the refusal was checked."""
    document = answer.json()
    assert (answer.status_code, document["code"], document["limit_name"]) == (429, code, name), answer.text
    assert document["retryable"] is True
    assert name in document["detail"]
    wait = int(answer.headers["retry-after"])
    assert wait >= document["retry_after_seconds"] > 0
    return wait


def test_jobs_that_wait_are_limited_for_this_tenant_alone(yard: Yard, acme: dict[str, str]) -> None:
    limit(yard, queued_jobs=5)
    assert submit(yard, acme, 4).status_code == 202
    refusal(submit(yard, acme, 2), code="over_quota", name="queued_jobs")
    assert submit(yard, acme, 6).json()["code"] == "too_large"
    made = submit(yard, acme, 1)
    assert made.status_code == 202
    assert submit(yard, {}, 50).status_code == 202, "others are not touched"
    bulk = yard.client.post("/v1/bulks", json={"model": "echo"}, headers=acme).json()["id"]
    fed = yard.client.post(f"/v1/bulks/{bulk}/jobs", json={"inputs": ["x"]}, headers={**acme, "idempotency-key": "0"})
    refusal(fed, code="over_quota", name="queued_jobs")
    assert yard.client.post(f"/v1/jobs/{made.json()['ids'][0]}/cancel", headers=acme).status_code == 200
    until(lambda: submit(yard, acme, 1).status_code, lambda status: status == 202)


def test_bytes_that_are_kept_are_limited(yard: Yard, acme: dict[str, str]) -> None:
    limit(yard, stored_bytes=5000)
    assert submit(yard, acme, size=3000).status_code == 202
    refusal(submit(yard, acme, size=3000), code="over_quota", name="stored_bytes")
    refusal(upload(yard, acme, size=3000), code="over_quota", name="stored_bytes")
    listed = yard.client.get("/v1/jobs", headers=acme).json()["jobs"]
    assert yard.client.post(f"/v1/jobs/{listed[0]['id']}/cancel", headers=acme).status_code == 200
    assert yard.client.delete(f"/v1/jobs/{listed[0]['id']}", headers=acme).status_code == 204
    until(lambda: upload(yard, acme, size=3000).status_code, lambda status: status == 201)


def test_a_rate_says_exactly_when_to_come_back(yard: Yard, acme: dict[str, str]) -> None:
    limit(yard, requests_per_second=3)
    answers = [yard.client.get("/v1/jobs", headers=acme) for _ in range(8)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    refusal(refused[-1], code="rate_limited", name="requests_per_second")
    time.sleep(refused[-1].json()["retry_after_seconds"])
    assert yard.client.get("/v1/jobs", headers=acme).status_code == 200
    assert all(yard.client.get("/v1/jobs").status_code == 200 for _ in range(20)), "others are not touched"


def test_a_bulks_chunk_passes_whole_and_the_next_one_waits_until_it_is_paid_off(
    yard: Yard, acme: dict[str, str]
) -> None:
    limit(yard, jobs_per_second=100)
    assert submit(yard, acme, 400).status_code == 202
    wait = refusal(submit(yard, acme), code="rate_limited", name="jobs_per_second")
    assert wait in {3, 4}
    assert yard.client.get("/v1/jobs", headers=acme).status_code == 200, "looking is not submitting"
