"""The consumers of one pool: a Deployment on the nodes of its hardware, sized by KEDA."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from batchyard.settings import HardwareSettings, PoolSettings, Settings
from batchyard_scaler.render.hardware import grace_seconds, hardware_of, models_of
from batchyard_scaler.render.keda import scaled_object
from batchyard_scaler.render.objects import (
    Document,
    consumer_name,
    container,
    cpus,
    disruption_budget,
    document,
    from_secret,
    gibibytes,
    labels,
    object_name,
    pod,
    secret_variables,
)
from batchyard_scaler.render.presets import PRESETS

ACCOUNT = "batchyard-worker"
ZONE_LABEL = "topology.kubernetes.io/zone"
DISRUPTED = "10%"
"""Of a pool at a time when nodes are emptied on purpose; rounded up. Consumers drain, so this only spares capacity."""


def pool_documents(settings: Settings, pool: PoolSettings) -> list[Document]:
    name, labelled = consumer_name(pool), labels("worker", pool=object_name(pool))
    return [
        document(
            "Deployment",
            api="apps/v1",
            name=name,
            settings=settings,
            labelled=labelled,
            # No replicas: they are KEDA's to set.
            spec={
                "selector": {"matchLabels": labelled},
                # Without surplus: there may be no further GPU for it.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "25%"}},
                "template": _template(settings, pool, labelled),
            },
        ),
        disruption_budget(settings, name=name, labelled=labelled, max_unavailable=DISRUPTED),
        scaled_object(settings, pool),
    ]


def _template(settings: Settings, pool: PoolSettings, labelled: dict[str, str]) -> Document:
    hardware = hardware_of(settings, pool)
    return pod(
        settings,
        container(
            settings,
            role="worker",
            # A pod is one consumer, whatever shares its device.
            command=["worker", "--pool", pool.name, "--device", pool.device],
            env=[
                *from_secret(settings, *secret_variables(settings)),
                # With these a consumer finds its own pod, and marks it while it is busy.
                _field("POD_NAME", "metadata.name"),
                _field("POD_NAMESPACE", "metadata.namespace"),
                # Pods carry their node's label from Kubernetes 1.35 on; before, and without it, this is empty.
                _field("NODE_ZONE", f"metadata.labels['{ZONE_LABEL}']"),
            ],
            resources=_resources(hardware),
            is_served=True,
        ),
        labelled=labelled,
        account=ACCOUNT,
        is_served=True,
        reads=_read_by_consumers(settings, pool),
        terminationGracePeriodSeconds=grace_seconds(settings, pool),
        **_placement(settings, pool, hardware, labelled),
    )


def _read_by_consumers(settings: Settings, pool: PoolSettings) -> Settings:
    """Without other pools, and without what is the scaler's alone: a new `max` shall not restart what is loaded."""
    seen = PoolSettings(
        name=pool.name,
        models=pool.models,
        capacity=pool.capacity,
        device=pool.device,
        consumers_per_device=pool.consumers_per_device,
        memory_gib=pool.memory_gib,
        host_memory_gib=pool.host_memory_gib,
        drain_seconds=pool.drain_seconds,
        cloud=pool.cloud,
        metadata_url=pool.metadata_url,
    )
    return dataclasses.replace(settings, models=tuple(models_of(settings, pool)), pools=(seen,))


def _field(variable: str, path: str) -> Document:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _resources(hardware: HardwareSettings) -> Document:
    """Memory and GPU are requested and limited alike; the processor may be used beyond the request."""
    bounded = {"memory": gibibytes(hardware.memory_gib)}
    if hardware.resource:
        bounded[hardware.resource] = "1"
    return {"requests": {"cpu": cpus(hardware.cpus), **bounded}, "limits": bounded}


def _placement(
    settings: Settings, pool: PoolSettings, hardware: HardwareSettings, labelled: dict[str, str]
) -> Document:
    preset = PRESETS[settings.kubernetes.preset]
    is_spot = pool.capacity == "spot"
    chosen = [label.partition("=") for label in hardware.node_labels]
    selector = {key: value for key, _, value in chosen}
    if hardware.accelerator:
        selector[preset.accelerator_label] = hardware.accelerator
    taints = [*(_gpu_taints(hardware, preset.gpu_taints)), *(preset.spot_taints if is_spot else ()), *hardware.taints]
    placement: Document = {}
    if selector:
        placement["nodeSelector"] = selector
    if preset.capacity_label is not None:
        placement["affinity"] = _capacity(preset.capacity_label, preset.spot, is_spot=is_spot)
    if taints:
        placement["tolerations"] = [_toleration(taint) for taint in taints]
    if is_spot:
        placement["topologySpreadConstraints"] = [_spread(labelled)]
    return placement


def _gpu_taints(hardware: HardwareSettings, further: Sequence[str]) -> list[str]:
    """Nodes with GPUs are commonly tainted by the name of the whole GPU, whatever slices of it they offer."""
    domain = hardware.resource.partition("/")[0]
    return [f"{domain}/gpu:NoSchedule", *further] if domain else []


def _capacity(label: str, spot: str, *, is_spot: bool) -> Document:
    """`NotIn` also takes nodes without the label."""
    expression = {"key": label, "operator": "In" if is_spot else "NotIn", "values": [spot]}
    terms = [{"matchExpressions": [expression]}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def _toleration(taint: str) -> Document:
    key, _, effect = taint.rpartition(":")
    name, equals, value = key.partition("=")
    matching = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
    return {"key": name, **matching, "effect": effect}


def _spread(labelled: dict[str, str]) -> Document:
    """Over zones, since spot capacity is taken back zone by zone; yet rather in one zone than not at all."""
    return {
        "maxSkew": 1,
        "topologyKey": ZONE_LABEL,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labelled},
    }
