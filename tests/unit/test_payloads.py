"""Payloads are written once, whole or not at all, and take the place of their references in inputs."""

import os
from pathlib import Path
from typing import Any

import pytest

from batchyard import payloads
from batchyard.errors import ConfigurationError, InvalidInput, NotFound, TooLarge, Unavailable
from batchyard.jobs import format_id
from batchyard.settings import Settings, StorageSettings
from batchyard.store.base import PayloadInfo


@pytest.fixture(params=["file", "memory://payloads-of-a-test"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> payloads.ObjectStore:
    return payloads.open_objects(Settings(state_dir=tmp_path, storage=StorageSettings(url=request.param)))


def test_what_is_put_is_read_and_deleted(objects: payloads.ObjectStore) -> None:
    location = payloads.location_of(5, tenant_id=1)
    stored = objects.put(location, [b"a" * 700_000, b"", b"b" * 700_000], max_bytes=2_000_000)
    assert stored.size == 1_400_000
    assert objects.read(location) == b"a" * 700_000 + b"b" * 700_000
    assert max(map(len, objects.chunks(location))) <= payloads.CHUNK_BYTES
    objects.delete(location)
    objects.delete(location)
    with pytest.raises(NotFound):
        objects.read(location)


def test_what_is_deleted_stays_so_after_the_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = payloads.open_objects(Settings(state_dir=tmp_path))
    objects.put("1/x", [b"abc"], max_bytes=3)
    path = tmp_path / "payloads" / "1" / "x"
    flushed: list[bool] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        if os.path.samestat(os.fstat(descriptor), path.parent.stat()):
            flushed.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    objects.delete("1/x")
    assert flushed == [False], "its folder, once the entry is gone"
    objects.delete("2/never-was")


def test_a_storage_that_fsspec_does_not_know_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, storage=StorageSettings(url="nowhere://bucket"))
    with pytest.raises(ConfigurationError, match=r"storage\.url cannot be used: .*nowhere"):
        payloads.open_objects(settings)


def test_the_digest_is_sha_256(objects: payloads.ObjectStore) -> None:
    stored = objects.put("1/x", [b"abc"], max_bytes=3)
    assert stored.digest.hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_too_large_leaves_nothing_behind(objects: payloads.ObjectStore) -> None:
    with pytest.raises(TooLarge) as refused:
        objects.put("1/large", [b"123", b"456"], max_bytes=5)
    assert refused.value.details["limit"] == 5
    with pytest.raises(NotFound):
        objects.read("1/large")


def test_an_upload_that_breaks_off_leaves_nothing_behind(objects: payloads.ObjectStore) -> None:
    upload = objects.create("1/broken", max_bytes=10)
    upload.write(b"123")
    upload.discard()
    with pytest.raises(NotFound):
        objects.read("1/broken")


def test_a_store_that_is_away_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "payloads").write_text("a file where the folder should be")
    objects = payloads.open_objects(Settings(state_dir=tmp_path))
    with pytest.raises(Unavailable) as away:
        objects.put("1/x", [b"abc"], max_bytes=3)
    assert str(tmp_path) not in away.value.message


def test_references_anywhere_become_bytes() -> None:
    reference = {"$payload": format_id(7)}
    value = {
        "image": reference,
        "more": [1, [reference]],
        "other": {"$payload": format_id(7), "x": 1},
        "text": "$payload",
    }
    resolved = payloads.resolve(value, lambda number: b"%d" % number)
    assert resolved == {"image": b"7", "more": [1, [b"7"]], "other": value["other"], "text": "$payload"}
    assert payloads.resolve(reference, lambda number: b"whole") == b"whole"


@pytest.mark.parametrize("wrong", ["", "x", 7, None, "7", {}])
def test_a_reference_that_is_no_id_is_an_invalid_input(wrong: Any) -> None:
    with pytest.raises(InvalidInput):
        payloads.resolve([{"$payload": wrong}], lambda number: b"")


def test_the_cheap_look_never_misses_a_reference() -> None:
    assert payloads.may_refer(b'{"$payload": "x"}')
    assert payloads.may_refer(b'{"\\u0024payload": "x"}')
    assert not payloads.may_refer(b'{"text": "plain"}')


class Jobs:
    def get_payloads(self, ids: list[int]) -> list[PayloadInfo]:
        row = PayloadInfo(id=7, tenant_id=1, content_type="image/png", size=3, digest=b"", location="1/seven")
        return [row for number in ids if number == 7]


def test_only_the_tenants_own_payloads_are_fetched(objects: payloads.ObjectStore) -> None:
    objects.put("1/seven", [b"abc"], max_bytes=3)
    jobs: Any = Jobs()
    assert payloads.fetch_from(jobs, objects, tenant_id=1)(7) == b"abc"
    for tenant_id, number in ((2, 7), (1, 8)):
        with pytest.raises(InvalidInput):
            payloads.fetch_from(jobs, objects, tenant_id=tenant_id)(number)
    objects.delete("1/seven")
    with pytest.raises(InvalidInput):
        payloads.fetch_from(jobs, objects, tenant_id=1)(7)
