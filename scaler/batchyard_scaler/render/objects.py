"""The pieces that Kubernetes objects are made of here: names, labels, containers, pods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from batchyard.configuration import redacted
from batchyard.settings import PoolSettings, Settings
from batchyard_scaler.render.configuration import digest_of_configuration

Document = dict[str, Any]
Role = Literal["api", "worker", "scaler"]
"""Also the name of the image: `migrate` runs that of the API."""

NAME = "batchyard"
CONFIG_MAP = "batchyard-config"
CONFIG_FILE = "batchyard.toml"
CONFIG_DIR = "/etc/batchyard"
STATE_DIR = "/var/lib/batchyard"
USER_ID = 10001
"""Of the user in the images of `deploy/`."""
DATABASE_VARIABLE = "BATCHYARD_DATABASE__URL"
BROKER_VARIABLE = "BATCHYARD_BROKER__URL"
STORAGE_VARIABLE = "BATCHYARD_STORAGE__URL"


def consumer_name(pool: PoolSettings) -> str:
    """Of its Deployment and all that goes with it."""
    return f"{NAME}-worker-{object_name(pool)}"


def object_name(pool: PoolSettings) -> str:
    """Its name with the letters that Kubernetes allows."""
    return re.sub(r"[._]", "-", pool.name.lower())


def labels(component: str, **more: str) -> dict[str, str]:
    """What selects the objects of one part."""
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/component": component,
        **{f"{NAME}/{key}": value for key, value in more.items()},
    }


def document(
    kind: str, *, api: str, name: str, settings: Settings, labelled: Mapping[str, str], **body: Any
) -> Document:
    """One object in the namespace of the configuration."""
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": settings.kubernetes.namespace, "labels": dict(labelled)},
        **body,
    }


@dataclass(frozen=True, kw_only=True)
class Mount:
    claim: str
    path: str
    read_only: bool


def mounts(settings: Settings) -> list[Mount]:
    """`kubernetes.volumes` taken apart."""
    parts = [text.split(":") for text in settings.kubernetes.volumes]
    return [Mount(claim=part[0], path=part[1], read_only=len(part) > 2) for part in parts]


def secret_variables(settings: Settings) -> tuple[str, ...]:
    """What the Secret of the configuration must hold."""
    storage = (STORAGE_VARIABLE,) if is_secret(settings.storage.url) else ()
    return (DATABASE_VARIABLE, BROKER_VARIABLE, *storage)


def is_secret(url: str) -> bool:
    """Whether there is a password or the like in it."""
    return redacted(url) != url


def from_secret(settings: Settings, *variables: str) -> list[Document]:
    """Variables whose values stand in the Secret of the configuration; a pod does not start without them."""
    name = settings.kubernetes.secret
    return [{"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}} for key in variables]


def container(
    settings: Settings,
    *,
    role: Role,
    command: Sequence[str],
    env: Sequence[Document],
    resources: Document,
    is_served: bool = False,
    **more: Any,
) -> Document:
    """A container of ours; one that `is_served` also gets the claims and further Secrets of the configuration."""
    kubernetes = settings.kubernetes
    further = [{"secretRef": {"name": name}} for name in kubernetes.env_secrets] if is_served else []
    claims = [
        {"name": f"claim-{number}", "mountPath": mount.path, **({"readOnly": True} if mount.read_only else {})}
        for number, mount in enumerate(mounts(settings))
        if is_served
    ]
    return {
        "name": role,
        "image": kubernetes.image.replace("{role}", role),
        "command": [NAME, *command],
        "env": [
            {"name": "BATCHYARD_CONFIG", "value": f"{CONFIG_DIR}/{CONFIG_FILE}"},
            {"name": "BATCHYARD_STATE", "value": STATE_DIR},
            {"name": "HOME", "value": STATE_DIR},
            *env,
        ],
        **({"envFrom": further} if further else {}),
        "resources": resources,
        **more,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "state", "mountPath": STATE_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            *claims,
        ],
    }


def pod(
    settings: Settings,
    container: Document,
    *,
    labelled: Mapping[str, str],
    account: str = NAME,
    is_served: bool = False,
    reads: Settings | None = None,
    **more: Any,
) -> Document:
    """The template of pods with one container; a change of what it `reads` restarts them."""
    annotations = {f"{NAME}/config-digest": digest_of_configuration(reads)} if reads is not None else {}
    claims = [
        {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": mount.claim}}
        for number, mount in enumerate(mounts(settings))
        if is_served
    ]
    return {
        "metadata": {
            "labels": dict(labelled),
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {
            "serviceAccountName": account,
            "enableServiceLinks": False,
            **more,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "config", "configMap": {"name": CONFIG_MAP}},
                {"name": "state", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                *claims,
            ],
        },
    }


def cpus(number: float) -> str:
    """As a quantity: whole cores, else thousandths."""
    return f"{number:g}" if number == int(number) else f"{round(number * 1000)}m"


def gibibytes(number: float) -> str:
    return f"{number:g}Gi" if number == int(number) else f"{round(number * 1024)}Mi"


def disruption_budget(
    settings: Settings, *, name: str, labelled: Mapping[str, str], max_unavailable: int | str
) -> Document:
    return document(
        "PodDisruptionBudget",
        api="policy/v1",
        name=name,
        settings=settings,
        labelled=labelled,
        spec={
            "maxUnavailable": max_unavailable,
            # Else a pod that crashes over and over would keep its node from being emptied.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": dict(labelled)},
        },
    )
