"""Metrics written directly read as Prometheus's own do, and what one process reports harms no other's."""

import math
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from batchyard import exposition, telemetry


def test_an_unreadable_snapshot_harms_nobody_else() -> None:
    good = [["batchyard_x", "gauge", "x", [["batchyard_x", "", 1.0]]]]
    unread = (["batchyard_x", "", "one"], ["batchyard_x", {"labels": "as a mapping"}, 1.0])
    for bad in (None, 5, [1], [["a", "gauge"]], *([["batchyard_x", "gauge", "x", [sample]]] for sample in unread)):
        families = list(exposition.reemit([({"consumer": "a"}, bad), ({"consumer": "b"}, good)]))  # type: ignore[list-item]
        assert [line for family in families for line in family.lines[1:]] == ['batchyard_x{consumer="b"} 1.0\n']


@pytest.mark.parametrize("value", [0, 2, 0.1, 1e-9, 1e20, math.inf, -math.inf])
@pytest.mark.parametrize("text", ["", "plain", 'a "quoted"\nline', "back\\slash", "ünï{}%s,="])
def test_what_is_written_directly_reads_as_what_prometheus_writes(text: str, value: float) -> None:
    family = exposition.Family("batchyard_x", f"About {text}", labels=("one", "other"))
    family.add((text, "b"), value)
    theirs = GaugeMetricFamily("batchyard_x", f"About {text}", labels=("one", "other"))
    theirs.add_metric((text, "b"), value)
    written, expected = (
        list(text_string_to_metric_families(exposition.render(registry_of(each)).decode())) for each in (family, theirs)
    )
    assert written == expected


def registry_of(*families: Metric) -> CollectorRegistry:
    registry = telemetry.new_registry()
    registry.register(Collected(families))
    return registry


class Collected:
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families
