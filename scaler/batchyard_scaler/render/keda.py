"""ScaledObjects that land on exactly the replicas decided."""

from __future__ import annotations

from batchyard.keda import DESIRED_REPLICAS, EXTERNAL_SCALER_PORT, SCALE_PATH, SCALE_VALUE
from batchyard.settings import PoolSettings, Settings
from batchyard_scaler.render.objects import Document, consumer_name, document, labels, object_name

SCALE_SECRET = "batchyard-scale"
"""Holds a key of the scope `scale` as `token`; the TriggerAuthentication that reads it is named the same."""
API_SERVICE = "batchyard-api"
SCALER_SERVICE = "batchyard-scaler"

POLL_SECONDS = 5
HPA_SECONDS = 15
"""How often the autoscaler looks, and the shortest period of its policies."""
FAILURES = 3
"""Polls without an answer before KEDA falls back."""


def scaled_object(settings: Settings, pool: PoolSettings) -> Document:
    """The autoscaler adds nothing of its own: no tolerance, no stabilisation, no limit of steps, no cool-down; the
    scaler's decision has all that in it. Where the decision cannot be had, the replicas that are there stay.

    That takes a fallback of at least one replica, though no more than those there are asked for: with 0, KEDA takes an
    error for idleness and ends them all. A KEDA that knows no such fallback does nothing on an error where it has none.
    """
    name = consumer_name(pool)
    fallback = {"failureThreshold": FAILURES, "replicas": max(1, pool.min), "behavior": "currentReplicas"}
    return document(
        "ScaledObject",
        api="keda.sh/v1alpha1",
        name=name,
        settings=settings,
        labelled=labels("worker", pool=object_name(pool)),
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicaCount": pool.min,
            "maxReplicaCount": pool.max,
            "pollingInterval": POLL_SECONDS,
            "cooldownPeriod": 0,
            **({"fallback": fallback} if minor_version(settings.kubernetes.keda_version) >= KEEPING_SINCE else {}),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(settings, pool)}},
            "triggers": [_trigger(settings, pool)],
        },
    )


def trigger_authentication(settings: Settings) -> Document:
    """How KEDA shows its key to the API."""
    return document(
        "TriggerAuthentication",
        api="keda.sh/v1alpha1",
        name=SCALE_SECRET,
        settings=settings,
        labelled=labels("scaler"),
        spec={"secretTargetRef": [{"parameter": "token", "name": SCALE_SECRET, "key": "token"}]},
    )


TOLERANCE_SINCE, TOLERANCE_BY_DEFAULT_SINCE = 33, 35
"""Minor versions of Kubernetes in which a single autoscaler may do without tolerance: by a feature gate, and at all."""
KEDA_TOLERANCE_SINCE = 18
"""Minor version of KEDA whose ScaledObject may say so."""
KEEPING_SINCE = 17
"""Minor version of KEDA that can fall back to the replicas that are there."""


def minor_version(version: str) -> int:
    return int(version.partition(".")[2])


def is_exact(settings: Settings) -> bool:
    """Whether the autoscaler can be told to follow every decision."""
    kubernetes = settings.kubernetes
    is_known = minor_version(kubernetes.keda_version) >= KEDA_TOLERANCE_SINCE
    return is_known and minor_version(kubernetes.version) >= TOLERANCE_SINCE


def _behavior(settings: Settings, pool: PoolSettings) -> Document:
    exact = {"tolerance": 0} if is_exact(settings) else {}
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            **exact,
            "policies": [{"type": "Pods", "value": pool.max, "periodSeconds": HPA_SECONDS}],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 0,
            **exact,
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": HPA_SECONDS}],
        },
    }


def _trigger(settings: Settings, pool: PoolSettings) -> Document:
    """A target of 1 a replica: the number that is told is the number of replicas."""
    kubernetes = settings.kubernetes
    match kubernetes.trigger:
        case "metrics-api":
            address = f"http://{API_SERVICE}.{kubernetes.namespace}.svc:{settings.server.port}"
            metadata = {
                "url": address + SCALE_PATH.format(pool=pool.name),
                "format": "json",
                "valueLocation": SCALE_VALUE,
                "targetValue": "1",
                "activationTargetValue": "0",
                "authMode": "bearer",
            }
        case "external-push":
            address = f"{SCALER_SERVICE}.{kubernetes.namespace}.svc:{EXTERNAL_SCALER_PORT}"
            metadata = {"scalerAddress": address, "pool": pool.name}
        case "prometheus":
            metadata = {
                "serverAddress": kubernetes.prometheus_url,
                # Every API process shows the gauge, and KEDA wants one series.
                "query": f'max({DESIRED_REPLICAS}{{pool="{pool.name}"}})',
                "threshold": "1",
                "activationThreshold": "0",
                # A lost exporter would read as 0, and end every consumer.
                "ignoreNullValues": "false",
            }
    authenticated = {"authenticationRef": {"name": SCALE_SECRET}} if kubernetes.trigger == "metrics-api" else {}
    return {"type": kubernetes.trigger, "metricType": "AverageValue", "metadata": metadata, **authenticated}
