"""What a key lets its holder do: every call with every scope, and two tenants who never see a byte of each other's."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from batchyard import results
from batchyard.jobs import ErrorInfo, Outcome, State, format_id, parse_id
from batchyard.keys import SCOPES
from batchyard.store.base import JobFilter
from batchyard_producer.app import CALLS
from batchyard_producer.calls import Call
from tests.services.api.test_rest import until
from tests.services.api.yard import Yard

NOWHERE = "0123456789abcdef"
BODIES: dict[str, Any] = {
    "/v1/models/{model}/jobs": {"input": "x"},
    "/v1/jobs/{id}": {"priority": 3},
    "/v1/jobs/lookup": {"ids": [NOWHERE]},
    "/v1/jobs/redrive": {"ids": [NOWHERE]},
    "/v1/bulks": {"model": "echo"},
    "/v1/bulks/{id}/jobs": {"inputs": ["x"]},
    "/v1/keys": {"name": "made by a test"},
    "/v1/tenants": {"name": "made-by-a-test"},
    "/v1/webhooks": {"url": "https://example.com/"},
    "/v1/webhook-deliveries/replay": {"webhook_id": NOWHERE},
}
"""What makes a call without reference to anything; the others carry nothing."""


def key_of(yard: Yard, tenant: str, *scopes: str) -> dict[str, str]:
    made = yard.client.post("/v1/keys", json={"name": "test", "tenant": tenant, "scopes": scopes})
    assert made.status_code == 201, made.text
    return {"authorization": f"Bearer {made.json()['key']}"}


def path_of(call: Call, *, id: str = NOWHERE, prefix: str = "aaaaaaaa") -> str:  # noqa: A002  the path's own name
    named = {"{id}": id, "{prefix}": prefix, "{model}": "echo", "{pool}": "nowhere"}
    path = call.path
    for name, value in named.items():
        path = path.replace(name, value)
    assert "{" not in path, f"say what {call.path} is to be called with"
    return path


def send(
    yard: Yard, call: Call, path: str, headers: dict[str, str], *, body: Any = None, **query: str
) -> httpx.Response:
    content = None if call.method == "GET" else body if body is not None else BODIES.get(call.path)
    return yard.client.request(call.method, path, headers=headers, json=content, params=query)


# --- scopes ---


@pytest.mark.parametrize("scopes", [(scope,) for scope in SCOPES] + [("metrics", "scale")])
def test_a_key_opens_the_calls_of_its_scopes_and_no_other(yard: Yard, scopes: tuple[str, ...]) -> None:
    key = key_of(yard, "default", *scopes)
    for call in CALLS:
        answer = send(yard, call, path_of(call), key)
        allowed = call.scope is None or call.scope in scopes or "admin" in scopes
        if allowed:
            assert answer.status_code not in {401, 403}, (call.method, call.path, answer.text)
            assert answer.status_code < 500 or answer.status_code == 503, (call.method, call.path, answer.text)
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (call.method, call.path)
            assert call.scope in answer.json()["allowed"]
    if "admin" not in scopes:
        assert [tenant.name for tenant in yard.store.tenants()] == ["default"]
        assert len(yard.store.keys()) == 1
        assert bool(yard.store.list_jobs(JobFilter(tenant_id=1)).jobs) == ("jobs" in scopes)


def test_what_is_no_key_opens_nothing(yard: Yard) -> None:
    for text in ("by_aaaaaaaa_" + "a" * 32, "nonsense"):
        for call in CALLS:
            answer = send(yard, call, path_of(call), {"authorization": f"Bearer {text}"})
            if call.scope is None:
                assert answer.status_code == 200, call.path
            else:
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (call.method, call.path)


def test_a_rotated_key_and_its_successor_both_open_until_the_overlap_is_over(yard: Yard) -> None:
    old = key_of(yard, "default", "jobs", "metrics")
    prefix = old["authorization"].split("_")[1]
    made = yard.client.post(f"/v1/keys/{prefix}/rotate", json={"overlap_seconds": 600})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    document = made.json()
    new = {"authorization": f"Bearer {document['key']}"}
    assert (document["scopes"], document["tenant"]) == (["jobs", "metrics"], "default")
    for key in (old, new):
        assert yard.client.get("/v1/jobs", headers=key).status_code == 200
        assert yard.client.get("/v1/keys", headers=key).status_code == 403
    listed = {key["prefix"]: key for key in yard.client.get("/v1/keys").json()["keys"]}
    assert listed[prefix]["replaced_by"] == document["prefix"]
    assert "key" not in listed[document["prefix"]]
    assert document["key"] not in yard.client.get("/v1/keys").text
    again = yard.client.post(f"/v1/keys/{prefix}/rotate")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert yard.client.post("/v1/keys/none/rotate").status_code == 404
    for faulty in ({"overlap_seconds": -1}, {"overlap_seconds": 10**9}, {"expires_in_seconds": 0}, {"other": 1}):
        assert yard.client.post(f"/v1/keys/{document['prefix']}/rotate", json=faulty).status_code == 422
    # Without an overlap the old one ends at once, but for what an API process remembers of it.
    yard.client.post(f"/v1/keys/{document['prefix']}/rotate", json={"overlap_seconds": 0})
    until(lambda: yard.client.get("/v1/jobs", headers=new).status_code, lambda status: status == 401)


# --- tenants ---


@dataclass
class Owner:
    """A tenant with one of everything, all of it marked."""

    name: str
    tenant_id: int
    key: dict[str, str]
    mark: str
    jobs: dict[str, str] = field(default_factory=dict)
    """State → id."""
    bulk: str = ""
    payload: str = ""
    webhook: str = ""

    @property
    def ids(self) -> list[str]:
        return [*self.jobs.values(), self.bulk, self.payload, self.webhook]


@pytest.fixture
def owner(yard: Yard) -> Owner:
    mark = "s3cr3t-of-acme"
    made = yard.store.create_tenant(mark)
    return furnished(yard, Owner(mark, made.id, key_of(yard, mark, "jobs", "webhooks"), mark))


@pytest.fixture
def stranger(yard: Yard) -> dict[str, str]:
    """All that a tenant's key may allow, on an empty tenant; what belongs to the operator is not a tenant's."""
    yard.store.create_tenant("stranger")
    return key_of(yard, "stranger", "jobs", "metrics", "scale", "webhooks")


def furnished(yard: Yard, owner: Owner) -> Owner:
    post, mark = yard.client.post, owner.mark
    # Where nobody listens, so that deliveries stay.
    made = post("/v1/webhooks", json={"url": f"http://127.0.0.1:1/{mark}", "description": mark}, headers=owner.key)
    owner.webhook = made.json()["id"]
    payload = post("/v1/payloads", content=mark.encode() * 50, headers={**owner.key, "content-type": f"x/{mark}"})
    owner.payload = payload.json()["id"]
    states = ("queued", "running", "succeeded", "failed", "cancelled", "redriven")
    body = {
        "inputs": [{mark: {"$payload": owner.payload}}] * len(states),
        "params": {mark: mark},
        "labels": [mark],
        "custom_ids": [f"{mark}-{state}" for state in states],
    }
    answer = post("/v1/models/echo/jobs", json=body, headers={**owner.key, "idempotency-key": "shared key"})
    assert answer.status_code == 202, answer.text
    owner.jobs = dict(zip(states, answer.json()["ids"], strict=True))
    bulk = post("/v1/bulks", json={"model": "echo", "labels": [mark]}, headers={**owner.key, "idempotency-key": "b"})
    owner.bulk = bulk.json()["id"]
    fed = post(
        f"/v1/bulks/{owner.bulk}/jobs", json={"inputs": [mark, mark]}, headers={**owner.key, "idempotency-key": "0"}
    )
    owner.jobs["of the bulk"] = fed.json()["first_id"]
    numbers = {state: parse_id(each) or 0 for state, each in owner.jobs.items()}
    queue = next(view.queue_id for view in yard.store.get_jobs([numbers["queued"]], tenant_id=owner.tenant_id))
    held = [numbers[state] for state in ("running", "succeeded", "failed", "redriven", "of the bulk")]
    claimed = {job.id: job for job in yard.store.claim([(queue, sorted(held))], owner=yard.owner)}
    outcomes = [
        Outcome(claimed[numbers[state]], State.FAILED, error=ErrorInfo(mark, mark)) for state in ("failed", "redriven")
    ]
    outcomes += [
        Outcome(claimed[numbers[state]], State.SUCCEEDED, body=json.dumps(mark).encode(), format=results.JSON)
        for state in ("succeeded", "of the bulk")
    ]
    yard.store.finish(outcomes, owner=yard.owner)
    yard.store.cancel(numbers["cancelled"], tenant_id=owner.tenant_id)
    made = post(f"/v1/jobs/{owner.jobs['redriven']}/redrive", headers=owner.key)
    owner.jobs["successor"] = made.json()["id"]
    while yard.store.fold(limit=1000):
        pass
    return owner


def belongings(yard: Yard, owner: Owner) -> object:
    """All that the owner can see of them."""
    numbers = [parse_id(each) or 0 for each in owner.jobs.values()]
    views = yard.store.get_jobs(numbers, tenant_id=owner.tenant_id)
    listed = yard.store.list_jobs(JobFilter(tenant_id=owner.tenant_id, limit=1000)).jobs
    bulk = yard.store.get_bulk(parse_id(owner.bulk) or 0, tenant_id=owner.tenant_id)
    payloads = yard.store.get_payloads([parse_id(owner.payload) or 0])
    webhooks = yard.store.webhooks(tenant_id=owner.tenant_id)
    return sorted(views, key=lambda view: view.id), [view.id for view in listed], bulk, payloads, webhooks


def expect_nothing(answer: httpx.Response, owner: Owner, *, asked: object) -> None:
    shown = answer.content + str(sorted(answer.headers.items())).encode()
    assert owner.mark.encode() not in shown, (asked, answer.text)
    assert answer.status_code < 500, (asked, answer.text)


def test_the_owner_sees_what_nobody_else_does(yard: Yard, owner: Owner) -> None:
    """So that the tests below do not look for what is nowhere."""
    for path in (
        f"/v1/jobs/{owner.jobs['succeeded']}",
        f"/v1/jobs/{owner.jobs['failed']}",
        f"/v1/payloads/{owner.payload}",
        f"/v1/bulks/{owner.bulk}",
        f"/v1/bulks/{owner.bulk}/results",
        f"/v1/jobs?label={owner.mark}",
        "/v1/jobs",
        "/v1/bulks",
        "/v1/webhooks",
        "/v1/webhook-deliveries",
    ):
        answer = yard.client.get(path, headers=owner.key)
        assert answer.status_code == 200, path
        assert owner.mark in answer.text, path


def test_every_foreign_id_is_nowhere_in_every_call(yard: Yard, owner: Owner, stranger: dict[str, str]) -> None:
    before = belongings(yard, owner)
    prefix = owner.key["authorization"].split("_")[1]
    for call in CALLS:
        ids = owner.ids if "{id}" in call.path else [NOWHERE]
        for foreign in ids:
            answer = send(yard, call, path_of(call, id=foreign, prefix=prefix), stranger)
            asked = (call.method, call.path, foreign)
            expect_nothing(answer, owner, asked=asked)
            if "{id}" in call.path:
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (asked, answer.text)
                unknown = send(yard, call, path_of(call), stranger)
                # Not even that something is there can be told.
                assert answer.text.replace(foreign, NOWHERE) == unknown.text, asked
                assert answer.headers.keys() == unknown.headers.keys()
            elif call.scope == "admin":
                assert answer.status_code == 403, asked
    assert belongings(yard, owner) == before


def test_foreign_ids_in_bodies_and_queries_are_nowhere_too(yard: Yard, owner: Owner, stranger: dict[str, str]) -> None:
    before = belongings(yard, owner)
    post, get = yard.client.post, yard.client.get
    looked = post("/v1/jobs/lookup", json={"ids": owner.ids, "wait": 0.1}, headers=stranger)
    expect_nothing(looked, owner, asked="lookup")
    assert (looked.json()["jobs"], looked.json()["missing"], looked.json().get("retired")) == ([], owner.ids, None)
    redriven = post("/v1/jobs/redrive", json={"ids": owner.ids}, headers=stranger)
    expect_nothing(redriven, owner, asked="redrive")
    assert {job["refused"]["code"] for job in redriven.json()["jobs"]} == {"not_found"}
    named = post("/v1/models/echo/jobs", json={"input": {"$payload": owner.payload}}, headers=stranger)
    expect_nothing(named, owner, asked="payload")
    assert (named.status_code, named.json()["code"]) == (422, "invalid_input")
    for query in (
        {"after": owner.jobs["successor"]},
        {"state": "failed"},
        {"state": "running"},
        {"model": "echo"},
        {"finished_from": "2020-01-01T00:00:00Z"},
    ):
        for path in ("/v1/jobs", "/v1/bulks"):
            listed = get(path, params=query if path == "/v1/jobs" else {}, headers=stranger)
            expect_nothing(listed, owner, asked=(path, query))
            assert listed.json()[path.rpartition("/")[2]] == []
    for name, foreign in (("webhook_id", owner.webhook), ("job_id", owner.jobs["failed"]), ("bulk_id", owner.bulk)):
        assert get("/v1/webhook-deliveries", params={name: foreign}, headers=stranger).json() == {"deliveries": []}
    for which in ({"webhook_id": owner.webhook}, {"ended_from": "2020-01-01T00:00:00Z"}):
        assert post("/v1/webhook-deliveries/replay", json=which, headers=stranger).json() == {"count": 0}
    for where in ({"label": owner.mark}, {"error": owner.mark}, {}):
        found = post("/v1/jobs/redrive", json={"where": where, "dry_run": True}, headers=stranger)
        assert found.json()["jobs"] == []
    assert belongings(yard, owner) == before


def test_idempotency_keys_are_each_tenants_own(yard: Yard, owner: Owner, stranger: dict[str, str]) -> None:
    headers = {**stranger, "idempotency-key": "shared key"}
    mine = yard.client.post("/v1/models/echo/jobs", json={"input": "x"}, headers=headers)
    assert (mine.status_code, mine.json().get("replayed")) == (202, None)
    assert mine.json()["id"] not in owner.ids
    bulk = yard.client.post("/v1/bulks", json={"model": "echo"}, headers={**stranger, "idempotency-key": "b"})
    assert (bulk.status_code, bulk.json()["id"] == owner.bulk) == (201, False)


def test_figures_of_the_whole_name_no_tenant(yard: Yard, owner: Owner, stranger: dict[str, str]) -> None:
    for path in ("/metrics", "/v1/status", "/v1/models", "/v1/models/echo", "/v1/pools", "/readyz", "/openapi.json"):
        answer = yard.client.get(path, headers=stranger)
        assert answer.status_code == 200, path
        expect_nothing(answer, owner, asked=path)
        assert not [each for each in owner.ids if each in answer.text], path


@pytest.mark.parametrize("seed", range(3))
def test_a_stranger_who_tries_at_random_gets_nothing(
    yard: Yard, owner: Owner, stranger: dict[str, str], seed: int
) -> None:
    """Calls with what a stranger may have got hold of, in any place, over what the stranger has too."""
    rng = random.Random(seed)
    before = belongings(yard, owner)
    own = [yard.client.post("/v1/models/echo/jobs", json={"input": n}, headers=stranger).json()["id"] for n in range(3)]
    own.append(yard.client.post("/v1/bulks", json={"model": "echo"}, headers=stranger).json()["id"])
    ids = [*owner.ids, *own, NOWHERE, format_id(parse_id(owner.bulk) or 0)[:-1] + "f"]
    words = ["failed", "queued", "echo", "echo@1", "1", "0", "all", "any", "", "model_error", *ids]
    names = ["after", "wait", "state", "model", "label", "error", "limit", "finished_from", "tensors", "lane"]
    members = [
        "ids",
        "where",
        "input",
        "inputs",
        "to",
        "after",
        "wait",
        "until",
        "dry_run",
        "priority",
        "model",
        "limit",
    ]

    def value(depth: int = 0) -> Any:
        kind = rng.randrange(6 if depth < 2 else 3)
        if kind < 3:
            return rng.choice([*ids, *ids, *words, 1, True, None])
        if kind < 5:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice([*members, "$payload", "state"]): value(depth + 1) for _ in range(rng.randrange(3))}

    for _ in range(250):
        call = rng.choice(CALLS)
        path = path_of(call, id=rng.choice(ids), prefix=rng.choice(words) or "x")
        query = {rng.choice(names): rng.choice(words) for _ in range(rng.choice([0, 0, 1, 2]))}
        if "wait" in query:
            query["wait"] = "0.01"
        body = rng.choice([BODIES.get(call.path), {rng.choice(members): value() for _ in range(rng.randrange(1, 4))}])
        if body is not None and "wait" in body:
            body["wait"] = 0.01
        accept = {"accept": rng.choice(["application/json", "application/msgpack", "*/*"])}
        key = {"idempotency-key": rng.choice(["shared key", "b", "0", "new"])}
        answer = send(yard, call, path, {**stranger, **accept, **key}, body=body, **query)
        asked = (seed, call.method, path, query, body)
        expect_nothing(answer, owner, asked=asked)
        if any(f"/{foreign}" in path for foreign in owner.ids):
            assert answer.status_code in {403, 404, 422}, asked
    assert belongings(yard, owner) == before
