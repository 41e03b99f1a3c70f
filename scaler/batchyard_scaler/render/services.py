"""What stands beside the consumers: the API, the scaler, the migration, and what they all read."""

from __future__ import annotations

import hashlib
import json

from batchyard.keda import EXTERNAL_SCALER_PORT
from batchyard.settings import Settings
from batchyard_scaler.render.configuration import configuration_text
from batchyard_scaler.render.keda import API_SERVICE, SCALER_SERVICE, trigger_authentication
from batchyard_scaler.render.objects import (
    CONFIG_FILE,
    CONFIG_MAP,
    DATABASE_VARIABLE,
    NAME,
    Document,
    container,
    disruption_budget,
    document,
    from_secret,
    labels,
    pod,
    secret_variables,
)
from batchyard_scaler.render.pools import ACCOUNT

SMALL = {"requests": {"cpu": "100m", "memory": "256Mi"}}
SERVING = {"requests": {"cpu": "1", "memory": "1Gi"}}


def shared_documents(settings: Settings) -> list[Document]:
    """The configuration, the accounts, and the consumers' right to mark their pods."""
    return [
        document(
            "ConfigMap",
            api="v1",
            name=CONFIG_MAP,
            settings=settings,
            labelled=labels("config"),
            data={CONFIG_FILE: configuration_text(settings)},
        ),
        _account(settings, NAME, component="api", has_token=False),
        _account(settings, ACCOUNT, component="worker", has_token=True),
        document(
            "Role",
            api="rbac.authorization.k8s.io/v1",
            name=ACCOUNT,
            settings=settings,
            labelled=labels("worker"),
            rules=[{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}],
        ),
        document(
            "RoleBinding",
            api="rbac.authorization.k8s.io/v1",
            name=ACCOUNT,
            settings=settings,
            labelled=labels("worker"),
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
            subjects=[{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": settings.kubernetes.namespace}],
        ),
    ]


def migration_documents(settings: Settings) -> list[Document]:
    """A Job cannot be changed, so one with other contents has another name; running it again does no harm."""
    labelled = labels("migrate")
    template = pod(
        settings,
        container(
            settings,
            role="api",
            command=["migrate"],
            env=from_secret(settings, DATABASE_VARIABLE),
            resources=SMALL,
        ),
        labelled=labelled,
        restartPolicy="OnFailure",
    )
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]
    spec = {"backoffLimit": 10, "template": template}
    return [
        document(
            "Job", api="batch/v1", name=f"{NAME}-migrate-{digest}", settings=settings, labelled=labelled, spec=spec
        )
    ]


def api_documents(settings: Settings) -> list[Document]:
    labelled, port = labels("api"), settings.server.port
    serving = container(
        settings,
        role="api",
        command=["api"],
        env=from_secret(settings, *secret_variables(settings)),
        resources=SERVING,
        is_served=True,
        ports=[{"name": "http", "containerPort": port}],
        startupProbe=_probe("/healthz", period=2, failures=30),
        readinessProbe=_probe("/readyz", period=5, failures=2),
        livenessProbe=_probe("/healthz", period=10, failures=6),
        # Requests still come for as long as the end of this pod is news to some node.
        lifecycle={"preStop": {"exec": {"command": ["sleep", "5"]}}},
    )
    return [
        document(
            "Deployment",
            api="apps/v1",
            name=API_SERVICE,
            settings=settings,
            labelled=labelled,
            spec={
                "replicas": settings.kubernetes.api_replicas,
                "selector": {"matchLabels": labelled},
                "template": pod(
                    settings,
                    serving,
                    labelled=labelled,
                    is_served=True,
                    reads=settings,
                    automountServiceAccountToken=False,
                    topologySpreadConstraints=[_over_nodes(labelled)],
                ),
            },
        ),
        _service(settings, API_SERVICE, component="api", port_name="http", port=port),
        disruption_budget(settings, name=API_SERVICE, labelled=labelled, max_unavailable=1),
    ]


def scaler_documents(settings: Settings) -> list[Document]:
    """One scaler: while it is away nothing is decided, and KEDA keeps what is there. Two where KEDA asks the scaler
    itself, which keeps nothing of what it cannot reach: one decides and both answer."""
    labelled = labels("scaler")
    is_pushing = settings.kubernetes.trigger == "external-push"
    replicas: Document = {"replicas": 2} if is_pushing else {"replicas": 1, "strategy": {"type": "Recreate"}}
    deciding = container(
        settings,
        role="scaler",
        command=["scaler", *(["--grpc-bind", f"0.0.0.0:{EXTERNAL_SCALER_PORT}"] if is_pushing else [])],
        env=from_secret(settings, DATABASE_VARIABLE),
        resources=SMALL,
        **(_listening() if is_pushing else {}),
    )
    found = [
        document(
            "Deployment",
            api="apps/v1",
            name=SCALER_SERVICE,
            settings=settings,
            labelled=labelled,
            spec={
                **replicas,
                "selector": {"matchLabels": labelled},
                "template": pod(
                    settings, deciding, labelled=labelled, reads=settings, automountServiceAccountToken=False
                ),
            },
        )
    ]
    if is_pushing:
        found += [
            _service(settings, SCALER_SERVICE, component="scaler", port_name="grpc", port=EXTERNAL_SCALER_PORT),
            disruption_budget(settings, name=SCALER_SERVICE, labelled=labelled, max_unavailable=1),
            _keda_alone(settings, labelled),
        ]
    if settings.kubernetes.trigger == "metrics-api":
        found.append(trigger_authentication(settings))
    return found


def _listening() -> Document:
    """Probed by the health service of gRPC."""

    def probe(*, period: int, failures: int) -> Document:
        asked = {"port": EXTERNAL_SCALER_PORT}
        return {"grpc": asked, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}

    return {
        "ports": [{"name": "grpc", "containerPort": EXTERNAL_SCALER_PORT}],
        "startupProbe": probe(period=2, failures=30),
        "readinessProbe": probe(period=5, failures=2),
        "livenessProbe": probe(period=10, failures=6),
    }


def _keda_alone(settings: Settings, labelled: dict[str, str]) -> Document:
    """The scaler answers whoever reaches it, in the clear; who that is the network says."""
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": settings.kubernetes.keda_namespace}}
    let_in = {"from": [{"namespaceSelector": namespace}], "ports": [{"protocol": "TCP", "port": "grpc"}]}
    return document(
        "NetworkPolicy",
        api="networking.k8s.io/v1",
        name=SCALER_SERVICE,
        settings=settings,
        labelled=labelled,
        spec={"podSelector": {"matchLabels": labelled}, "policyTypes": ["Ingress"], "ingress": [let_in]},
    )


def _account(settings: Settings, name: str, *, component: str, has_token: bool) -> Document:
    return document(
        "ServiceAccount",
        api="v1",
        name=name,
        settings=settings,
        labelled=labels(component),
        automountServiceAccountToken=has_token,
    )


def _service(settings: Settings, name: str, *, component: str, port_name: str, port: int) -> Document:
    labelled = labels(component)
    ports = [{"name": port_name, "port": port, "targetPort": port_name}]
    spec = {"selector": labelled, "ports": ports}
    return document("Service", api="v1", name=name, settings=settings, labelled=labelled, spec=spec)


def _probe(path: str, *, period: int, failures: int) -> Document:
    get = {"path": path, "port": "http"}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _over_nodes(labelled: dict[str, str]) -> Document:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labelled},
    }
