"""What the autoscaler makes of decisions, by the ScaledObject that is rendered."""

from pathlib import Path
from typing import Any

import pytest

from tests.services.keda import FACTOR
from tests.services.keda.autoscaler import SYNC_SECONDS, Autoscaler, Hpa
from tests.services.keda.sources import TriggerFailed
from tests.unit.scaler.rendering import MODEL, SERVERS, by_name, rendered

LARGEST = 60
POOL = f'[pools.p]\nmodels = ["m"]\nmax = {LARGEST}\n'


def spec_of(folder: Path, further: str = "") -> Any:
    return by_name(rendered(folder, SERVERS + MODEL + POOL + further))["ScaledObject", "batchyard-worker-p"]["spec"]


class Pods:
    """Replicas that are there at once."""

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.history: list[tuple[int, str]] = []

    def scale(self, replicas: int, *, by: str) -> None:
        self.replicas = replicas
        self.history.append((replicas, by))


class Decided:
    """A trigger that tells a number, or fails."""

    def __init__(self) -> None:
        self.replicas: float | None = 0
        self.has_target = True

    def target(self) -> float:
        if not self.has_target:
            raise TriggerFailed("no target")
        return 1.0

    def look(self) -> tuple[float, bool]:
        if self.replicas is None:
            raise TriggerFailed("no decision")
        return self.replicas, self.replicas > 0


def test_every_decision_is_reached_from_every_size_at_once(tmp_path: Path) -> None:
    spec, now = spec_of(tmp_path), [0.0]
    for replicas in range(1, LARGEST + 1):
        for decided in range(1, LARGEST + 1):
            hpa = Hpa(spec, clock=lambda: now[0])
            assert hpa.desired(replicas=replicas, metric=decided, target=1.0) == decided
    # Also one decision after the other, period by period.
    hpa, replicas = Hpa(spec, clock=lambda: now[0]), 1
    for decided in (60, 1, 2, 60, 59, 3, 60, 1):
        now[0] += SYNC_SECONDS / FACTOR
        replicas = hpa.desired(replicas=replicas, metric=decided, target=1.0)
        assert replicas == decided


@pytest.mark.parametrize("decided", [9, 11])
def test_an_autoscaler_with_tolerance_stays_where_it_is(tmp_path: Path, decided: int) -> None:
    spec = spec_of(tmp_path, '[kubernetes]\nversion = "1.32"\n')
    assert Hpa(spec).desired(replicas=10, metric=decided, target=1.0) == 10
    assert Hpa(spec_of(tmp_path)).desired(replicas=10, metric=decided, target=1.0) == decided


def test_nothing_becomes_the_decision_and_nothing_again(tmp_path: Path) -> None:
    decided, pods = Decided(), Pods(0)
    keda = Autoscaler(spec_of(tmp_path), decided, pods)
    for replicas in (0, 7, 8, 2, 0):
        decided.replicas = replicas
        keda.look()
        keda.sync()
        assert pods.replicas == replicas
    assert pods.history == [
        (1, "look"),
        (7, "autoscaler"),
        (8, "autoscaler"),
        (2, "autoscaler"),
        (0, "cool-down"),
    ]


@pytest.mark.parametrize("has_target", [True, False])
@pytest.mark.parametrize("replicas", [0, 1, 7])
def test_without_decisions_everything_stays_as_it_is(tmp_path: Path, replicas: int, has_target: bool) -> None:
    decided, pods = Decided(), Pods(replicas)
    decided.replicas, decided.has_target = None, has_target
    keda = Autoscaler(spec_of(tmp_path), decided, pods)
    for _ in range(20):
        keda.look()
        keda.sync()
    assert pods.history == []
    decided.replicas, decided.has_target = 3, True
    keda.look()
    keda.sync()
    assert pods.replicas == 3
