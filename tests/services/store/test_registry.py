"""Models, queues, tenants and keys."""

import pytest

from batchyard.errors import Conflict, NotFound
from batchyard.jobs import Lane
from batchyard.store.base import JobStore, ModelConfig, Tenant
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
