"""Models, queues, tenants and keys."""

from typing import Any

import pytest

from batchyard.errors import Conflict, NotFound
from batchyard.jobs import Lane
from batchyard.store.base import ApiKey, JobStore, ModelConfig, Tenant, TenantLimits
from tests.services.store.yard import Yard


def test_versions_are_made_kept_and_put_aside(store: JobStore) -> None:
    one = ModelConfig(model="m", version="1", runtime="r", weight=0.5, default_lane=Lane.TOLERANT)
    (made,) = store.sync_models([one])
    assert (made.name, made.runtime, made.weight, made.active) == ("m@1", "r", 0.5, True)
    assert (made.default_lane, set(made.queue_ids), made.paused) == (Lane.TOLERANT, set(Lane), frozenset())
    assert (made.input_schema, made.digest, made.cost_unit) == (None, None, "bytes")
    again, two = store.sync_models([one, ModelConfig(model="m", version="2", runtime="r")])
    assert again == made
    assert set(two.queue_ids.values()).isdisjoint(made.queue_ids.values())
    old, new = store.sync_models([ModelConfig(model="m", version="2", runtime="changed", weight=3)])
    assert (old.active, old.queue_ids) == (False, made.queue_ids)
    assert (new.active, new.runtime, new.weight) == (True, "changed", 3)
    assert store.models() == [old, new]


def test_paused_lanes_show(yard: Yard) -> None:
    yard.store.set_queue_paused(yard.tolerant, paused=True)
    (model,) = yard.store.models()
    assert model.paused == {Lane.TOLERANT}
    with pytest.raises(NotFound):
        yard.store.set_queue_paused(999, paused=True)


def test_a_loaded_version_publishes_what_it_found(yard: Yard) -> None:
    yard.store.report_load_error(yard.model.id, message="no weights")
    assert yard.store.models()[0].load_error == "no weights"
    schema = {"type": "string"}
    yard.store.report_version(yard.model.id, digest="d1", input_schema=schema, cost_unit="tokens", load_seconds=1.5)
    yard.store.report_speed(yard.model.id, units_per_byte=0.25, seconds_per_unit=0.001)
    (model,) = yard.store.models()
    assert (model.digest, model.input_schema, model.cost_unit) == ("d1", schema, "tokens")
    assert (model.load_seconds, model.load_error) == (1.5, None)
    assert (model.units_per_byte, model.seconds_per_unit) == (0.25, 0.001)


def test_a_digest_may_change_only_before_the_first_job(yard: Yard) -> None:
    found = {"input_schema": {}, "cost_unit": "bytes", "load_seconds": 0.1}
    yard.store.report_version(yard.model.id, digest="d1", **found)  # type: ignore[arg-type]
    yard.store.report_version(yard.model.id, digest="d2", **found)  # type: ignore[arg-type]
    yard.run(yard.submit(1))
    yard.store.report_version(yard.model.id, digest="d2", **found)  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="d2"):
        yard.store.report_version(yard.model.id, digest="d3", **found)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        yard.store.report_version(99, digest="d3", **found)  # type: ignore[arg-type]


def test_tenants(store: JobStore) -> None:
    assert store.tenants() == [Tenant(id=1, name="default", weight=1.0)]
    made = store.create_tenant("ünï", weight=2.5)
    with pytest.raises(Conflict):
        store.create_tenant("ünï")
    after = store.create_tenant("next")
    assert store.tenants()[1:] == [made, after]
    assert (made.name, made.weight, after.id) == ("ünï", 2.5, made.id + 1)


def test_a_tenants_limits_are_kept_and_replaced_as_a_whole(store: JobStore) -> None:
    made = store.create_tenant("acme")
    assert made.limits == TenantLimits()
    limits = TenantLimits(queued_jobs=5, stored_bytes=2**40, requests_per_second=0.5)
    assert store.set_tenant_limits("acme", limits).limits == limits
    assert [tenant.limits for tenant in store.tenants()] == [TenantLimits(), limits]
    assert store.set_tenant_limits("acme", TenantLimits(jobs_per_second=0)).limits == TenantLimits(jobs_per_second=0)
    with pytest.raises(NotFound):
        store.set_tenant_limits("nobody", limits)


def _made(store: JobStore, prefix: str, **values: Any) -> ApiKey:
    given = {"tenant_id": 1, "name": "ci", "digest": b"d", "scopes": ["jobs", "scale"], "expires_at_ms": None, **values}
    return store.create_key(prefix=prefix, **given)


def _found(store: JobStore, prefix: str) -> ApiKey:
    found = store.find_key(prefix)
    assert found is not None
    return found[0]


def test_a_rotated_key_stays_valid_for_the_overlap_alone(store: JobStore) -> None:
    tenant = store.create_tenant("t")
    old = _made(store, "old", tenant_id=tenant.id)
    made = store.rotate_key("old", successor="new", digest=b"\x00e", overlap_ms=60_000)
    assert (made.tenant, made.tenant_id, made.name, made.scopes) == ("t", tenant.id, "ci", ("jobs", "scale"))
    assert (made.expires_at_ms, made.revoked_at_ms, made.replaced_by) == (None, None, None)
    assert store.find_key("new") == (made, b"\x00e")
    was, digest = store.find_key("old") or (old, b"")
    assert (was.replaced_by, digest) == ("new", b"d")
    now = store.now_ms()
    assert was.fault(now_ms=now) is made.fault(now_ms=now) is None
    assert was.expires_at_ms is not None
    assert now + 30_000 < was.expires_at_ms < now + 61_000
    assert was.fault(now_ms=was.expires_at_ms) == "has expired"
    with pytest.raises(Conflict, match="new"):
        store.rotate_key("old", successor="third", digest=b"f", overlap_ms=0)
    at_once = store.rotate_key("new", successor="third", digest=b"f", overlap_ms=0)
    assert at_once.fault(now_ms=store.now_ms()) is None
    assert _found(store, "new").fault(now_ms=store.now_ms() + 5) == "has expired"


def test_a_successor_lives_as_long_as_the_old_key_was_meant_to(store: JobStore) -> None:
    now = store.now_ms()
    _made(store, "a", expires_at_ms=now + 1_000_000)
    kept = store.rotate_key("a", successor="b", digest=b"e", overlap_ms=2_000_000)
    assert abs((kept.expires_at_ms or 0) - kept.created_at_ms - 1_000_000) < 5_000
    # The overlap prolongs nothing.
    assert _found(store, "a").expires_at_ms == now + 1_000_000
    given = store.rotate_key("b", successor="c", digest=b"e", overlap_ms=0, life_ms=77_000)
    assert (given.expires_at_ms or 0) - given.created_at_ms == 77_000


def test_only_valid_keys_are_rotated_and_nothing_changes_otherwise(store: JobStore) -> None:
    _made(store, "gone")
    store.revoke_key("gone")
    _made(store, "old", expires_at_ms=1)
    _made(store, "fine")
    before = store.keys()
    for prefix, successor, error in (
        ("gone", "x", Conflict),
        ("old", "x", Conflict),
        ("fine", "old", Conflict),
        ("none", "x", NotFound),
    ):
        with pytest.raises(error):
            store.rotate_key(prefix, successor=successor, digest=b"e", overlap_ms=1000)
    assert store.keys() == before


def test_keys_are_found_listed_and_revoked(store: JobStore) -> None:
    tenant = store.create_tenant("t")
    made = store.create_key(
        prefix="by_1", tenant_id=tenant.id, name="ci", digest=b"\x00d", scopes=["jobs", "admin"], expires_at_ms=99
    )
    assert (made.prefix, made.tenant, made.tenant_id, made.name) == ("by_1", "t", tenant.id, "ci")
    assert (made.scopes, made.expires_at_ms, made.revoked_at_ms) == (("jobs", "admin"), 99, None)
    store.create_key(prefix="by_2", tenant_id=1, name="x", digest=b"e", scopes=["jobs"], expires_at_ms=None)
    assert store.find_key("by_1") == (made, b"\x00d")
    assert store.find_key("by_3") is None
    listed = store.keys()
    assert [key.prefix for key in listed] == ["by_1", "by_2"]
    revoked = store.revoke_key("by_1")
    assert revoked.revoked_at_ms is not None
    assert store.revoke_key("by_1") == revoked
    assert store.find_key("by_1") == (revoked, b"\x00d")
    with pytest.raises(NotFound):
        store.revoke_key("by_3")
    with pytest.raises(NotFound):
        store.create_key(prefix="by_4", tenant_id=77, name="x", digest=b"e", scopes=[], expires_at_ms=None)
    with pytest.raises(Conflict):
        store.create_key(prefix="by_2", tenant_id=1, name="x", digest=b"e", scopes=[], expires_at_ms=None)
