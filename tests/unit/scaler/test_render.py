"""What the manifests say."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchyard.configuration import load_settings
from batchyard.keda import DESIRED_REPLICAS, SCALE_VALUE
from batchyard.settings import PoolSettings
from batchyard_scaler.render.manifests import as_text, as_texts, notes
from tests.unit.scaler.rendering import FLEET, MODEL, SERVERS, by_name, container_of, pod_of, rendered, settings_of

KARPENTER = '[kubernetes]\npreset = "karpenter"\n'
CLASSED = SERVERS + MODEL + KARPENTER + '[pools.p]\nmodels = ["m"]\nhardware = "h"\n[hardware.h]\n'


def scaled(folder: Path, text: str, pool: str = "gpu") -> Any:
    return by_name(rendered(folder, text))["ScaledObject", f"batchyard-worker-{pool}"]["spec"]


def worker(folder: Path, text: str, pool: str = "gpu") -> Any:
    return by_name(rendered(folder, text))["Deployment", f"batchyard-worker-{pool}"]


# --- pools ---


def test_a_pool_lands_on_exactly_what_was_decided(tmp_path: Path) -> None:
    spec = scaled(tmp_path, FLEET + KARPENTER)

    assert spec["scaleTargetRef"]["name"] == "batchyard-worker-gpu"
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    assert (spec["pollingInterval"], spec["cooldownPeriod"]) == (5, 0)
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for direction in ("scaleUp", "scaleDown"):
        assert (behavior[direction]["tolerance"], behavior[direction]["stabilizationWindowSeconds"]) == (0, 0)
    assert behavior["scaleUp"]["policies"] == [{"type": "Pods", "value": 4, "periodSeconds": 15}]
    [trigger] = spec["triggers"]
    assert trigger == {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {
            "url": "http://batchyard-api.batchyard.svc:8080/v1/pools/gpu/scale",
            "format": "json",
            "valueLocation": SCALE_VALUE,
            "targetValue": "1",
            "activationTargetValue": "0",
            "authMode": "bearer",
        },
        "authenticationRef": {"name": "batchyard-scale"},
    }


@pytest.mark.parametrize(("pool", "replicas"), [("gpu", 1), ("spot", 1)])
def test_without_decisions_the_replicas_stay_and_an_error_is_never_taken_for_idleness(
    tmp_path: Path, pool: str, replicas: int
) -> None:
    fallback = scaled(tmp_path, FLEET + KARPENTER, pool)["fallback"]
    assert fallback == {"failureThreshold": 3, "replicas": replicas, "behavior": "currentReplicas"}


def test_the_replicas_of_a_pool_are_left_to_keda(tmp_path: Path) -> None:
    assert "replicas" not in worker(tmp_path, FLEET + KARPENTER)["spec"]


def test_an_older_autoscaler_is_not_told_of_tolerance_and_the_reader_is(tmp_path: Path) -> None:
    text = FLEET + KARPENTER + 'version = "1.32"\n'
    behavior = scaled(tmp_path, text)["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert "tolerance" not in behavior["scaleUp"] | behavior["scaleDown"]
    [note, _] = notes(settings_of(tmp_path, text))
    assert note.startswith("Kubernetes 1.32 with KEDA 2.20 ignores changes")
    [note, _] = notes(settings_of(tmp_path, text.replace("1.32", "1.34")))
    assert note.startswith("Kubernetes 1.34 without the feature gate HPAConfigurableTolerance with KEDA 2.20 ignores")
    assert "tolerance" in str(scaled(tmp_path, text.replace("1.32", "1.33")))
    [of_spot] = notes(settings_of(tmp_path, FLEET + KARPENTER))
    assert "Kubernetes" not in of_spot


def test_an_older_keda_is_told_what_it_knows_and_holds_what_is_there_as_well(tmp_path: Path) -> None:
    text = FLEET + KARPENTER + 'keda_version = "2.17"\n'
    spec = scaled(tmp_path, text)
    assert "tolerance" not in str(spec["advanced"])
    assert spec["fallback"]["behavior"] == "currentReplicas"
    [note, _] = notes(settings_of(tmp_path, text))
    assert note.startswith("Kubernetes 1.35 with KEDA 2.17 ignores changes")
    # Without a fallback it leaves the replicas alone on an error; one of its time would set them to a number.
    assert "fallback" not in scaled(tmp_path, text.replace("2.17", "2.16"))


def test_prometheus_is_asked_for_one_series_that_may_not_be_missing(tmp_path: Path) -> None:
    text = FLEET + KARPENTER + 'trigger = "prometheus"\nprometheus_url = "http://prometheus:9090"\n'
    [trigger] = scaled(tmp_path, text)["triggers"]
    assert trigger["metadata"]["query"] == f'max({DESIRED_REPLICAS}{{pool="gpu"}})'
    assert (trigger["metadata"]["threshold"], trigger["metadata"]["ignoreNullValues"]) == ("1", "false")
    assert "authenticationRef" not in trigger
    assert ("TriggerAuthentication", "batchyard-scale") not in by_name(rendered(tmp_path, text))


def test_external_push_asks_two_scalers_that_answer_keda_alone(tmp_path: Path) -> None:
    text = FLEET + KARPENTER + 'trigger = "external-push"\n'
    [trigger] = scaled(tmp_path, text)["triggers"]
    assert trigger["metadata"] == {"scalerAddress": "batchyard-scaler.batchyard.svc:9090", "pool": "gpu"}
    objects = by_name(rendered(tmp_path, text))
    [port] = objects["Service", "batchyard-scaler"]["spec"]["ports"]
    [opened] = container_of(objects["Deployment", "batchyard-scaler"])["ports"]
    assert (port["port"], port["targetPort"]) == (9090, opened["name"])
    scaler = objects["Deployment", "batchyard-scaler"]
    assert container_of(scaler)["command"] == ["batchyard", "scaler", "--grpc-bind", "0.0.0.0:9090"]
    assert scaler["spec"]["replicas"] == 2
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container_of(scaler)[probe]["grpc"] == {"port": opened["containerPort"]}
    policy = objects["NetworkPolicy", "batchyard-scaler"]["spec"]
    assert policy["podSelector"] == scaler["spec"]["selector"]
    [let_in] = policy["ingress"]
    [source] = let_in["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "keda"}
    assert [one["port"] for one in let_in["ports"]] == [opened["name"]]
    elsewhere = by_name(rendered(tmp_path, text + 'keda_namespace = "autoscaling"\n'))
    assert "autoscaling" in str(elsewhere["NetworkPolicy", "batchyard-scaler"])
    assert ("NetworkPolicy", "batchyard-scaler") not in by_name(rendered(tmp_path, FLEET + KARPENTER))


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        ("cpus = 4\nmemory_gib = 16", {"memory": "16Gi", "nvidia.com/gpu": "1"}),
        ('resource = "nvidia.com/mig-1g.10gb"', {"memory": "8Gi", "nvidia.com/mig-1g.10gb": "1"}),
        ('resource = ""\ncpus = 0.5\nmemory_gib = 1.5', {"memory": "1536Mi"}),
    ],
)
def test_a_consumer_gets_one_of_its_hardware(tmp_path: Path, settings: str, limits: dict[str, str]) -> None:
    resources = container_of(worker(tmp_path, CLASSED + settings, "p"))["resources"]
    assert resources["limits"] == limits
    cpu = {"cpus = 4": "4", "cpus = 0.5": "500m"}.get(next((s for s in settings.split("\n") if "cpus" in s), ""), "2")
    assert resources["requests"] == {"cpu": cpu, **limits}


def test_a_pool_without_a_class_has_a_gpu_unless_its_device_is_the_cpu(tmp_path: Path) -> None:
    pools = '[pools.a]\nmodels = ["m"]\n[pools.b]\nmodels = ["m"]\ndevice = "cpu"\n'
    text = SERVERS + MODEL + pools
    assert "nvidia.com/gpu" in container_of(worker(tmp_path, text, "a"))["resources"]["limits"]
    on_cpu = worker(tmp_path, text, "b")
    assert list(container_of(on_cpu)["resources"]["limits"]) == ["memory"]
    assert "tolerations" not in pod_of(on_cpu)


CAPACITY_LABELS = {
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "gke": ("cloud.google.com/gke-spot", "true"),
    "aks": ("kubernetes.azure.com/scalesetpriority", "spot"),
}


@pytest.mark.parametrize("preset", CAPACITY_LABELS)
def test_spot_pools_go_to_spot_nodes_and_others_to_others(tmp_path: Path, preset: str) -> None:
    label, value = CAPACITY_LABELS[preset]
    objects = by_name(rendered(tmp_path, FLEET + f'[kubernetes]\npreset = "{preset}"\n'))
    for pool, operator in (("spot", "In"), ("gpu", "NotIn")):
        pod = pod_of(objects["Deployment", f"batchyard-worker-{pool}"])
        required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [term] = required["nodeSelectorTerms"]
        assert term["matchExpressions"] == [{"key": label, "operator": operator, "values": [value]}]
        tolerated = {(one["key"], one.get("value")) for one in pod["tolerations"]}
        is_tainted = preset in {"gke", "aks"}
        assert ((label, value) in tolerated) == (is_tainted and pool == "spot")
        assert ("nvidia.com/gpu", None) in tolerated
        assert (("sku", "gpu") in tolerated) == (preset == "aks")


def test_spot_pools_spread_over_zones(tmp_path: Path) -> None:
    objects = by_name(rendered(tmp_path, FLEET + KARPENTER))
    spot = objects["Deployment", "batchyard-worker-spot"]
    [spread] = pod_of(spot)["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"] == spot["spec"]["selector"]
    assert "topologySpreadConstraints" not in pod_of(objects["Deployment", "batchyard-worker-gpu"])


@pytest.mark.parametrize(("preset", "cloud"), [("karpenter", "aws"), ("eks", "aws"), ("gke", "gcp"), ("aks", "azure")])
def test_a_consumer_knows_its_zone_and_whose_notices_to_watch(tmp_path: Path, preset: str, cloud: str) -> None:
    text = FLEET + f'cloud = "none"\n[kubernetes]\npreset = "{preset}"\n'
    objects = by_name(rendered(tmp_path, text))
    fields = {one["name"]: one.get("valueFrom") for one in container_of(worker(tmp_path, text, "spot"))["env"]}
    assert fields["NODE_ZONE"] == {"fieldRef": {"fieldPath": "metadata.labels['topology.kubernetes.io/zone']"}}
    inside = tomllib.loads(objects["ConfigMap", "batchyard-config"]["data"]["batchyard.toml"])
    assert (inside["pools"]["gpu"]["cloud"], inside["pools"]["spot"]["cloud"]) == (cloud, "none")


def test_hardware_names_its_nodes(tmp_path: Path) -> None:
    hardware = 'accelerator = "l4"\nnode_labels = ["team=ml"]\ntaints = ["team=ml:NoExecute", "slow:PreferNoSchedule"]'
    pod = pod_of(worker(tmp_path, CLASSED + hardware, "p"))
    assert pod["nodeSelector"] == {"team": "ml", "karpenter.k8s.aws/instance-gpu-name": "l4"}
    assert pod["tolerations"][1:] == [
        {"key": "team", "operator": "Equal", "value": "ml", "effect": "NoExecute"},
        {"key": "slow", "operator": "Exists", "effect": "PreferNoSchedule"},
    ]


@pytest.mark.parametrize(
    ("drain", "p99", "kept", "grace"), [(20, None, None, 30), (20, 42.5, 45.5, 56), (90.5, 42.5, 90.5, 101)]
)
def test_the_grace_holds_a_batch(
    tmp_path: Path, drain: float, p99: float | None, kept: float | None, grace: int
) -> None:
    model = MODEL if p99 is None else f"{MODEL}p99_batch_seconds = {p99}\n"
    files = rendered(tmp_path, SERVERS + model + f'[pools.p]\nmodels = ["m"]\ndrain_seconds = {drain}\n')
    objects = by_name(files)
    assert pod_of(objects["Deployment", "batchyard-worker-p"])["terminationGracePeriodSeconds"] == grace
    # The consumer itself waits as long.
    inside = tomllib.loads(objects["ConfigMap", "batchyard-config"]["data"]["batchyard.toml"])
    assert inside["pools"]["p"].get("drain_seconds") == kept


def test_a_consumer_may_mark_its_own_pod(tmp_path: Path) -> None:
    objects = by_name(rendered(tmp_path, FLEET + KARPENTER))
    pod = objects["Deployment", "batchyard-worker-gpu"]
    account = pod_of(pod)["serviceAccountName"]
    assert objects["ServiceAccount", account]["automountServiceAccountToken"]
    [subject] = objects["RoleBinding", account]["subjects"]
    role = objects["RoleBinding", account]["roleRef"]
    assert (subject["kind"], subject["name"]) == ("ServiceAccount", account)
    assert objects[role["kind"], role["name"]]["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}
    ]
    fields = {one["name"]: one["valueFrom"] for one in container_of(pod)["env"] if one["name"].startswith("POD_")}
    assert fields == {
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "POD_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
    }
    assert not objects["ServiceAccount", pod_of(objects["Deployment", "batchyard-api"])["serviceAccountName"]][
        "automountServiceAccountToken"
    ]


def test_budgets_never_keep_a_node_from_being_emptied(tmp_path: Path) -> None:
    objects = by_name(rendered(tmp_path, FLEET + KARPENTER))
    for name, unavailable in (("batchyard-worker-gpu", "10%"), ("batchyard-api", 1)):
        spec = objects["PodDisruptionBudget", name]["spec"]
        selector = objects["Deployment", name]["spec"]["selector"]
        assert spec == {
            "maxUnavailable": unavailable,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": selector,
        }


def test_names_of_pools_become_names_of_objects(tmp_path: Path) -> None:
    files = rendered(tmp_path, SERVERS + MODEL + '[pools."Big_GPU.a"]\nmodels = ["m"]\n')
    assert "pool-big-gpu-a.yaml" in files
    deployment = by_name(files)["Deployment", "batchyard-worker-big-gpu-a"]
    assert container_of(deployment)["command"] == ["batchyard", "worker", "--pool", "Big_GPU.a", "--device", "auto"]
    [trigger] = by_name(files)["ScaledObject", "batchyard-worker-big-gpu-a"]["spec"]["triggers"]
    assert trigger["metadata"]["url"].endswith("/v1/pools/Big_GPU.a/scale")


# --- what stands beside them ---


def test_every_selector_finds_its_own_pods_alone(tmp_path: Path) -> None:
    objects = by_name(rendered(tmp_path, FLEET + KARPENTER))
    deployments = [each for (kind, _), each in objects.items() if kind == "Deployment"]
    assert len(deployments) == 4
    for one in deployments:
        wanted = one["spec"]["selector"]["matchLabels"].items()
        found = [other for other in deployments if wanted <= other["spec"]["template"]["metadata"]["labels"].items()]
        assert found == [one]
    selector = objects["Service", "batchyard-api"]["spec"]["selector"]
    assert selector == objects["Deployment", "batchyard-api"]["spec"]["selector"]["matchLabels"]


def test_every_role_runs_its_command_from_its_image(tmp_path: Path) -> None:
    text = SERVERS + MODEL + '[kubernetes]\nimage = "r.example.com/y-{role}:v{version}"\n'
    containers = [
        container_of(each) for each in by_name(rendered(tmp_path, text)).values() if "template" in each.get("spec", {})
    ]
    assert {" ".join(one["command"]): one["image"] for one in containers} == {
        "batchyard migrate": "r.example.com/y-api:v1.2.3",
        "batchyard api": "r.example.com/y-api:v1.2.3",
        "batchyard scaler": "r.example.com/y-scaler:v1.2.3",
        "batchyard worker --pool local --device auto": "r.example.com/y-worker:v1.2.3",
    }


def test_secrets_are_named_and_never_written(tmp_path: Path) -> None:
    secret = "hunter2"
    text = FLEET.replace("://db/", f"://u:{secret}@db/").replace("://cache/", f"://:{secret}@cache/")
    text = text.replace("s3://", f"s3://key:{secret}@") + KARPENTER + 'secret = "mine"\nenv_secrets = ["store"]\n'
    files = rendered(tmp_path, text)

    assert secret not in "".join(as_texts(files).values())
    objects = by_name(files)
    for name in ("api", "worker-gpu"):
        container = container_of(objects["Deployment", f"batchyard-{name}"])
        taken = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if "secretKeyRef" in str(one)]
        assert [one["key"] for one in taken] == [
            "BATCHYARD_DATABASE__URL",
            "BATCHYARD_BROKER__URL",
            "BATCHYARD_STORAGE__URL",
        ]
        assert {one["name"] for one in taken} == {"mine"}
        assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert not any(kind == "Secret" for kind, _ in objects)


def test_claims_are_mounted_where_payloads_go(tmp_path: Path) -> None:
    text = FLEET.replace("s3://bucket", "file:///shared") + KARPENTER
    text += 'volumes = ["payloads:/shared", "weights:/models:ro"]\n'
    objects = by_name(rendered(tmp_path, text))
    for name in ("api", "worker-gpu"):
        deployment = objects["Deployment", f"batchyard-{name}"]
        mounted = {one["name"]: one for one in container_of(deployment)["volumeMounts"]}
        claims = {
            mounted[one["name"]]["mountPath"]: (
                one["persistentVolumeClaim"]["claimName"],
                mounted[one["name"]].get("readOnly"),
            )
            for one in pod_of(deployment)["volumes"]
            if "persistentVolumeClaim" in one
        }
        assert claims == {"/shared": ("payloads", None), "/models": ("weights", True)}
    assert "persistentVolumeClaim" not in str(objects["Deployment", "batchyard-scaler"])


def test_a_migration_with_other_contents_is_another_job(tmp_path: Path) -> None:
    def name(text: str) -> str:
        [job] = [name for kind, name in by_name(rendered(tmp_path, text)) if kind == "Job"]
        return job

    assert name(FLEET + KARPENTER) == name(FLEET.replace("max = 40", "max = 41") + KARPENTER)
    assert name(FLEET + KARPENTER) != name(FLEET + KARPENTER + 'image = "other-{role}"\n')


def test_a_change_restarts_those_whom_it_concerns(tmp_path: Path) -> None:
    def restarted(text: str) -> set[str]:
        before, after = by_name(rendered(tmp_path, FLEET + KARPENTER)), by_name(rendered(tmp_path, text + KARPENTER))
        return {name for kind, name in before if before[kind, name] != after[kind, name] and kind == "Deployment"}

    deciding = {"batchyard-api", "batchyard-scaler"}
    assert restarted(FLEET.replace("max = 40", "max = 41")) == deciding
    assert restarted(FLEET.replace("[pools.spot]", "[pools.spot]\ndrain_seconds = 99")) == {
        *deciding,
        "batchyard-worker-spot",
    }
    everybody = {*deciding, "batchyard-worker-spot", "batchyard-worker-gpu"}
    assert restarted(FLEET + "[queues]\nmax_failures = 5\n") == everybody


# --- the configuration within ---


def test_the_pods_read_the_same_configuration_without_its_secrets(tmp_path: Path) -> None:
    text = (
        FLEET
        + """
[server]
max_inputs = 77
[queues]
window_seconds = 1.5
[retention]
keep_seconds = 60
[limits]
queued_jobs = 77
[webhooks]
allowed_networks = ["10.0.0.0/8"]
retry_seconds = [1, 60.5]
[models."n@2"]
runtime = "sentence-transformers"
source = "/models/n"
lane = "tolerant"
weight = 0.25
batch_budget = 4096
options = { name = "a \\"quoted\\"\\n\\u007f line", "b c" = [1, true, 2.5e-3], day = 1979-05-27, deep = { x = [] } }
[pools.priced]
models = ["n"]
price_per_hour = 0.5
zones = ["a", "b"]
[[pools.priced.schedule]]
days = ["mon"]
from = "22:00"
to = "24:00"
timezone = "Europe/Berlin"
max = 5
[kubernetes]
preset = "gke"
"""
    )
    settings = settings_of(tmp_path, text, BATCHYARD_POOLS__GPU__MAX="9", BATCHYARD_LOG_LEVEL="debug")
    data = by_name(rendered(tmp_path, text, BATCHYARD_POOLS__GPU__MAX="9", BATCHYARD_LOG_LEVEL="debug"))
    inside_folder = tmp_path / "pod"
    inside_folder.mkdir()
    (inside_folder / "batchyard.toml").write_text(data["ConfigMap", "batchyard-config"]["data"]["batchyard.toml"])
    environ = {
        "BATCHYARD_DATABASE__URL": settings.database.url,
        "BATCHYARD_BROKER__URL": settings.broker.url,
    }

    inside = load_settings(inside_folder / "batchyard.toml", environ=environ)

    assert inside.server.bind == "0.0.0.0:8080"
    assert inside.server.max_inputs == 77
    assert (inside.database, inside.broker, inside.storage) == (settings.database, settings.broker, settings.storage)
    assert (inside.queues, inside.retention) == (settings.queues, settings.retention)
    assert (inside.limits, inside.webhooks) == (settings.limits, settings.webhooks)
    assert (inside.limits.queued_jobs, inside.webhooks.retry_seconds) == (77, (1.0, 60.5))
    assert inside.models == settings.models
    assert inside.pools == tuple(dataclasses.replace(pool, cloud="gcp") for pool in settings.pools)
    assert inside.log_level == "debug"


def test_a_pool_that_nobody_wrote_is_written(tmp_path: Path) -> None:
    [config, *_] = rendered(tmp_path, SERVERS + MODEL)["config.yaml"]
    assert tomllib.loads(config["data"]["batchyard.toml"])["pools"] == {"local": {"models": ["m"]}}
    assert PoolSettings(name="local", models=("m",)).max == 1


# --- text ---


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (as_texts(rendered(tmp_path, FLEET + KARPENTER)) for _ in range(2))
    assert first == again
    assert all(text.startswith("# Made by `batchyard render`") for text in first.values())


@pytest.mark.parametrize("text", ["1e3", "0x1", "1_0", "y", "N", "on", "No", "~", "null", ".5", "=", "a: b", "- a", ""])
def test_texts_stay_texts_for_every_reader_of_yaml(text: str) -> None:
    written = as_text([{"key": text}])
    assert yaml.safe_load(written) == {"key": text}
    assert ['"', "'"].count(written.splitlines()[1].partition(": ")[2][:1]) == 1


def test_the_kustomization_names_every_file(tmp_path: Path) -> None:
    files = rendered(tmp_path, FLEET + KARPENTER)
    [kustomization] = files["kustomization.yaml"]
    assert kustomization["kind"] == "Kustomization"
    assert sorted([*kustomization["resources"], "kustomization.yaml"]) == sorted(files)
    identities = [
        (each["kind"], each["metadata"]["name"]) for name in kustomization["resources"] for each in files[name]
    ]
    assert len(identities) == len(set(identities))
    assert {each["metadata"]["namespace"] for name in kustomization["resources"] for each in files[name]} == {
        "batchyard"
    }
