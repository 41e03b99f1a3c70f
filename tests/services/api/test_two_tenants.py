"""Two tenants over every call, in sequences that Hypothesis makes up: neither ever sees a byte of the other's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from batchyard.store.base import JobView
from batchyard_producer.app import CALLS
from batchyard_producer.calls import Call
from tests.services.api.test_tenants import BODIES, NOWHERE, Owner, furnished, key_of, path_of, send
from tests.services.api.yard import Yard

# The server runs in this process and draws numbers of its own meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

TENANTS = ("first", "second")
SECRETS = {name: f"s3cr3t-of-{name}" for name in TENANTS}
"""Stands in everything that a tenant sends: inputs, params, labels, names, content types."""

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 20), st.sampled_from(["failed", "echo", "all", "1", ""]))
MEMBERS = ("ids", "where", "input", "inputs", "to", "after", "until", "dry_run", "priority", "model", "limit", "labels")
QUERIES = ("after", "state", "model", "label", "error", "limit", "finished_from", "tensors")


@st.composite
def attempts(draw: st.DrawFn) -> dict[str, Any]:
    """One call: who asks, what for, and whose things it names, each told by its place in a list of its owner's."""
    thing = st.tuples(st.sampled_from(TENANTS), st.integers(0, 8))
    value = st.recursive(
        st.one_of(SCALARS, thing),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["$payload", *MEMBERS]), inner, max_size=3)
        ),
        max_leaves=4,
    )
    return {
        "who": draw(st.sampled_from(TENANTS)),
        "call": draw(st.integers(0, len(CALLS) - 1)),
        "path": draw(thing),
        "body": draw(
            st.one_of(st.none(), st.just("as it should be"), st.dictionaries(st.sampled_from(MEMBERS), value))
        ),
        "query": draw(st.dictionaries(st.sampled_from(QUERIES), st.one_of(SCALARS, thing), max_size=2)),
    }


class Two:
    """Both tenants with one of everything, and what each was answered."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.owners: dict[str, Owner] = {}
        for name in TENANTS:
            tenant = yard.store.create_tenant(SECRETS[name])
            key = key_of(yard, SECRETS[name], "jobs", "metrics", "scale", "webhooks")
            self.owners[name] = furnished(yard, Owner(SECRETS[name], tenant.id, key, SECRETS[name]))

    def named(self, thing: Any) -> Any:
        """What was drawn, with ids in the place of things."""
        if isinstance(thing, tuple):
            ids = self.owners[thing[0]].ids
            return ids[thing[1] % len(ids)]
        if isinstance(thing, list):
            return [self.named(one) for one in thing]
        if isinstance(thing, dict):
            return {name: self.named(one) for name, one in thing.items()}
        return thing

    def attempt(self, drawn: dict[str, Any]) -> None:
        who, call = drawn["who"], CALLS[drawn["call"]]
        [other] = set(TENANTS) - {who}
        path = path_of(call, id=self.named(drawn["path"]))
        body = BODIES.get(call.path) if drawn["body"] == "as it should be" else self.named(drawn["body"])
        query = {name: str(self.named(value)) for name, value in drawn["query"].items()}
        answer = send(self.yard, call, path, self.owners[who].key, body=body, **query)
        self.judge(call, answer, who=who, other=other, path=path, said=str((body, query)))
        if "{id}" in call.path and drawn["path"][0] == other:
            unknown = send(self.yard, call, path_of(call), self.owners[who].key, body=body, **query)
            # Not even that something is there can be told.
            assert answer.text.replace(self.named(drawn["path"]), NOWHERE) == unknown.text, path

    def judge(self, call: Call, answer: httpx.Response, *, who: str, other: str, path: str, said: str) -> None:
        asked = (who, call.method, path, said, answer.status_code, answer.text[:500])
        assert answer.status_code < 500, asked
        shown = answer.text + str(sorted(answer.headers.items()))
        assert SECRETS[other] not in shown, asked
        # An id of the other's may come back only where it was asked with.
        for foreign in self.owners[other].ids:
            assert foreign not in shown or foreign in path or foreign in said, asked
        if "{id}" in call.path and any(foreign in path for foreign in self.owners[other].ids):
            assert answer.status_code in {403, 404, 422}, asked


def fuzz(two: Two) -> int:
    """Make calls in sequences; how many."""
    asked = 0

    @hypothesis.settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        database=None,
        phases=[Phase.generate],  # what is there changes with every call, so a failure is told as it first came
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.lists(attempts(), min_size=5, max_size=12))
    def sequence(drawn: list[dict[str, Any]]) -> None:
        nonlocal asked
        for one in drawn:
            two.attempt(one)
            asked += 1

    sequence()
    return asked


def test_neither_of_two_tenants_ever_sees_the_others(yard: Yard) -> None:
    two = Two(yard)
    assert fuzz(two) >= 125
    for name, owner in two.owners.items():
        seen = yard.client.get("/v1/jobs", params={"limit": 1000}, headers=owner.key).text
        [other] = set(TENANTS) - {name}
        assert not [each for each in two.owners[other].ids if each in seen]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reader_that_forgets_the_tenant_is_found_out(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Two(yard)

    def get_jobs(ids: Sequence[int], *, tenant_id: int, results: bool = True) -> list[JobView]:
        everybody = (owner.tenant_id for owner in two.owners.values())
        return [view for one in everybody for view in yard.store.get_jobs(ids, tenant_id=one, results=results)]

    monkeypatch.setattr(yard.database, "get_jobs", get_jobs, raising=False)
    with pytest.raises(AssertionError):
        fuzz(two)
