"""The GPUs of a machine as its driver lists them, and which consumer has which."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.devices import Devices, Place, chosen_by, devices_for, left_visible, listed
from batchyard.settings import PoolSettings

A, B, C = (f"GPU-{letter * 8}-d33d-2b2c-524d-9e3d8d2b8a77" for letter in "abc")
SMALL, LARGE = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"
TOLD = f"""\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})
  MIG 1g.5gb      Device  0: (UUID: {SMALL})
  MIG 3g.20gb     Device  1: (UUID: {LARGE})
GPU 2: NVIDIA A100-SXM4-40GB (UUID: {C})
"""


def pool(device: str = "cuda", name: str = "p", **settings: int) -> PoolSettings:
    return PoolSettings(name=name, models=("m",), device=device, **settings)  # type: ignore[arg-type]


def test_a_divided_gpu_is_its_instances() -> None:
    assert listed(TOLD) == [[A], [SMALL, LARGE], [C]]
    assert listed("No devices were found\n") == []


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (None, [A, SMALL, LARGE, C]),
        ("", []),
        ("-1", []),
        ("2,0", [C, A]),
        ("1", [SMALL]),
        (f"{C[:8]}, {LARGE}", [C, LARGE]),
        ("0,7,2", [A]),
        ("GPU-", []),
    ],
)
def test_what_cuda_would_not_see_is_not_given_away(chosen: str | None, left: list[str]) -> None:
    assert left_visible(listed(TOLD), chosen) == left


def test_without_the_drivers_tool_what_is_named_is_believed() -> None:
    assert left_visible(None, None) is None
    assert left_visible(None, f"3, {A},x,4") == ["3", A]
    assert chosen_by("cuda", None) == ["0"]
    assert chosen_by(f"cuda:1,{A}", None) == ["1", A]


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [
        ("cuda", [A, SMALL, LARGE, C]),
        ("auto", [A, SMALL, LARGE, C]),
        ("cuda:3,0", [C, A]),
        (f"cuda:{LARGE},{A[:12]}", [LARGE, A]),
        (f"cuda:0,{A},9", [A]),
        ("cpu", None),
        ("mps", None),
    ],
)
def test_what_a_pool_means_by_its_device(wanted: str, devices: list[str] | None) -> None:
    assert chosen_by(wanted, left_visible(listed(TOLD), None)) == devices


def test_a_machine_without_gpus_computes_on_its_cpu_or_not_at_all() -> None:
    assert chosen_by("auto", []) is None
    assert chosen_by("auto", None) is None
    assert chosen_by("cuda", []) == []


def test_each_consumer_has_a_device_of_its_own_and_a_freed_one_goes_to_the_next() -> None:
    devices = Devices([A, B])
    first, second = devices.take(pool()), devices.take(pool())
    assert first is not None
    assert second is not None
    assert first.variables == {"CUDA_VISIBLE_DEVICES": A}
    assert first.arguments == ["--device", "cuda:0"]
    assert second.device == B
    assert devices.take(pool("auto")) is None
    devices.give_back(first)
    third = devices.take(pool("auto"))
    assert third == Place(device=A, torch_device="auto")


def test_shares_of_a_device_add_up_to_no_more_than_the_whole() -> None:
    devices = Devices([A])
    thirds = [devices.take(pool(consumers_per_device=3)) for _ in range(2)]
    assert [place and place.device for place in thirds] == [A, A]
    assert devices.free(pool(consumers_per_device=3)) == 1
    assert devices.take(pool(consumers_per_device=2)) is None
    assert devices.take(pool()) is None


def test_consumers_on_a_cpu_are_bound_to_nothing() -> None:
    devices = Devices([A])
    places = [devices.take(pool("cpu")) for _ in range(9)]
    assert {(place.device, *place.arguments, *place.variables) for place in places if place} == {("",)}
    assert devices.free(pool("cpu")) is None


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 7]), st.booleans()), max_size=40))
def test_no_device_is_ever_promised_twice(wishes: list[tuple[int, bool]]) -> None:
    devices = Devices([A, B])
    held: list[Place] = []
    for sharers, leaves in wishes:
        wanted = pool(consumers_per_device=sharers)
        if leaves and held:
            devices.give_back(held.pop(0))
        free, place = devices.free(wanted), devices.take(wanted)
        assert (place is not None) == (free is not None and free > 0)
        held += [place] if place is not None else []
        for device in (A, B):
            assert sum(one.share for one in held if one.device == device) <= 1


SMI = """#!/bin/sh
test "$*" = -L || exit 9
{body}
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, *, body: str) -> None:
    """Instead of the driver's tool."""
    tool = folder / "nvidia-smi"
    tool.write_text(SMI.format(body=body))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_driver_is_asked_where_a_pool_may_want_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, body=f"cat <<END\n{TOLD}END")
    assert devices_for([pool()], {}).free(pool()) == 4
    assert devices_for([pool()], {"CUDA_VISIBLE_DEVICES": "2"}).free(pool()) == 1
    assert devices_for([pool("cpu")], {}).free(pool()) == 1  # nobody was asked


def test_a_driver_that_does_not_answer_means_no_gpu_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in(tmp_path, monkeypatch, body="echo 'could not communicate with the NVIDIA driver'; exit 9")
    assert devices_for([pool()], {}).free(pool()) == 0
    [unknown, missing] = [vars(record)["fields"] for record in caplog.records]
    assert unknown["reason"] == "could not communicate with the NVIDIA driver"
    assert missing["wanted"] == "cuda"
