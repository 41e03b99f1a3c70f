import os
import select
from pathlib import Path

import pytest
from celery.worker.control import Panel

from batchyard.errors import ConfigurationError
from batchyard.settings import ModelSettings, PoolSettings, Settings
from batchyard.ticketing import FIRST_PREFETCH
from batchyard_consumers.catalog import find_pool, models_of
from batchyard_consumers.device import called, choose_device
from batchyard_consumers.held import MAX_AHEAD_JOBS, ahead_limit
from batchyard_consumers.worker import HARMLESS_COMMANDS, LARGEST_PREFETCH, Mailbox, prefetch_for, restrict_control
from tests.unit.consumers.jobs import served


def test_calls_from_elsewhere_are_done_in_order_and_wake_the_poller() -> None:
    mailbox, done = Mailbox(), list[int]()
    for n in range(20_000):
        mailbox.post(lambda n=n: done.append(n))  # type: ignore[misc]
    readable, _, _ = select.select([mailbox.fileno()], [], [], 0)
    assert readable == [mailbox.fileno()]
    while select.select([mailbox.fileno()], [], [], 0)[0]:
        mailbox.empty()
    assert done == list(range(20_000))
    os.close(mailbox.fileno())


@pytest.mark.parametrize(
    ("seconds_per_job", "tickets"),
    [(None, FIRST_PREFETCH), (10.0, 1), (0.0045, 1), (0.001, 4), (1e-7, LARGEST_PREFETCH)],
)
def test_tickets_are_fetched_for_half_a_second(seconds_per_job: float | None, tickets: int) -> None:
    made = served()
    made.speed.seconds_per_job = seconds_per_job
    assert prefetch_for(made) == tickets


@pytest.mark.parametrize(
    ("batch_jobs", "seconds_per_job", "other_seconds", "limit"),
    [
        (32, None, 0.0, 64),  # a few batches before anything is known
        (8, 1.0, 0.0, 16),  # two batches, however slow
        (8, 0.1, 0.0, 28),  # two seconds beyond the next batch
        (8, 0.1, 1.0, 18),  # shared with what other models hold
        (34, 0.001, 0.0, 1088),  # thirty-two batches
        (1, 1e-6, 0.0, 256),
        (2048, 1e-7, 0.0, MAX_AHEAD_JOBS),
    ],
)
def test_how_much_may_be_claimed_ahead(
    batch_jobs: int, seconds_per_job: float | None, other_seconds: float, limit: int
) -> None:
    found = ahead_limit(batch_jobs=batch_jobs, seconds_per_job=seconds_per_job, other_seconds=other_seconds)
    assert found == limit


def test_a_pool_names_versions_or_all_of_a_model() -> None:
    models = tuple(
        ModelSettings(name=name, version=v, runtime="x:Y") for name, v in (("a", "1"), ("a", "2"), ("b", "1"))
    )
    made = PoolSettings(name="p", models=("b", "a@2", "a"))
    settings = Settings(state_dir=Path("unused"), models=models, pools=(made,))
    assert [model.qualified for model in models_of(settings, find_pool(settings, "p"))] == ["b@1", "a@2", "a@1"]
    with pytest.raises(ConfigurationError, match="there are: p"):
        find_pool(settings, "q")


def test_a_named_device_is_taken_as_it_is() -> None:
    assert choose_device("cuda:3") == "cuda:3"
    assert choose_device("auto") in {"cpu", "cuda:0"}


@pytest.mark.parametrize(
    ("device", "visible", "told"),
    [
        ("cpu", "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "cpu"),
        ("cuda:0", "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "cuda:GPU-5d5ba0d6"),
        ("cuda:0", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "cuda:MIG-c6d4f1ef"),
        ("cuda:0", "3", "cuda:3"),
        ("cuda:1", "3,4", "cuda:1"),
        ("cuda:1", "", "cuda:1"),
    ],
)
def test_a_device_is_told_from_the_others_of_its_machine(device: str, visible: str, told: str) -> None:
    assert called(device, {"CUDA_VISIBLE_DEVICES": visible}) == told


def test_remote_control_can_look_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    monkeypatch.setattr(Panel, "meta", dict(Panel.meta))
    assert {"shutdown", "add_consumer", "cancel_consumer", "conf", "pool_restart", "revoke"} <= Panel.data.keys()
    restrict_control()
    assert Panel.data.keys() <= HARMLESS_COMMANDS
    assert {"ping", "stats", "enable_events"} <= Panel.data.keys()
