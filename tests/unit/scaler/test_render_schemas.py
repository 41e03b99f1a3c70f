"""Manifests against the schemas of Kubernetes and of KEDA, and through kustomize."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from batchyard_scaler.render.manifests import as_texts
from batchyard_scaler.render.objects import Document
from tests.unit.scaler.rendering import FLEET, MODEL, SERVERS, by_name, rendered

CRDS = Path(__file__).parents[4] / "shared" / "data" / "keda"
EVERYTHING = f"""
{FLEET.replace("s3://bucket", "file:///shared")}
[server]
bind = "[::]:9000"
[hardware.slice]
cpus = 0.25
memory_gib = 0.5
resource = "nvidia.com/mig-1g.10gb"
accelerator = "A100"
node_labels = ["a.example.com/b=c"]
taints = ["a=b:NoExecute", "c:NoSchedule"]
[pools."C_1"]
models = ["m"]
hardware = "slice"
[kubernetes]
namespace = "ml"
keda_version = "2.18"
volumes = ["payloads:/shared", "weights:/models:ro"]
env_secrets = ["store"]
"""
CONFIGURATIONS = {
    "plain": SERVERS + MODEL,
    "karpenter": EVERYTHING + 'preset = "karpenter"\n',
    "eks": EVERYTHING + 'preset = "eks"\nversion = "1.32"\n',
    "gke": EVERYTHING + 'preset = "gke"\ntrigger = "external-push"\n',
    "aks": EVERYTHING + 'preset = "aks"\ntrigger = "prometheus"\nprometheus_url = "http://prometheus:9090"\n',
}
KEDA = {"ScaledObject", "TriggerAuthentication"}


def objects_of(folder: Path, name: str) -> list[Document]:
    """As a cluster reads them: out of the text."""
    files = as_texts(rendered(folder, CONFIGURATIONS[name]))
    del files["kustomization.yaml"]
    return [document for text in files.values() for document in yaml.safe_load_all(text)]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_object_fits_the_schemas_of_kubernetes(tmp_path: Path, name: str) -> None:
    checked = 0
    for document in objects_of(tmp_path, name):
        if document["kind"] not in KEDA:
            for version in ("1.26", "1.31", "1.37"):
                kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 12


def test_the_schemas_would_notice(tmp_path: Path) -> None:
    [deployment, *_] = [each for each in objects_of(tmp_path, "plain") if each["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["tolerances"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.35", strict=True)


def closed(schema: Any) -> Any:
    """An OpenAPI schema as JSON Schema that allows no field it does not name: Kubernetes drops or refuses those."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: closed(value) for key, value in schema.items() if key != "format" and not key.startswith("x-")}
    if isinstance(schema.get("properties"), dict):
        kept.setdefault("additionalProperties", False)
    return kept


@pytest.fixture(scope="module")
def keda() -> dict[str, Any]:
    """Kind → validator."""
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs of KEDA at {CRDS}")
    found = {}
    for path in CRDS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
        [version] = [version for version in spec["versions"] if version["name"] == "v1alpha1"]
        found[spec["names"]["kind"]] = jsonschema_rs.Draft7Validator(closed(version["schema"]["openAPIV3Schema"]))
    return found


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_keda_takes_every_object_of_its_own(tmp_path: Path, keda: dict[str, Any], name: str) -> None:
    own = [each for each in objects_of(tmp_path, name) if each["kind"] in KEDA]
    for document in own:
        assert [str(error) for error in keda[document["kind"]].iter_errors(document)] == []
        assert document["apiVersion"] == "keda.sh/v1alpha1"
    assert {each["kind"] for each in own} == (KEDA if name not in {"gke", "aks"} else {"ScaledObject"})


def test_keda_would_refuse_others(tmp_path: Path, keda: dict[str, Any]) -> None:
    [scaled] = [each for each in objects_of(tmp_path, "plain") if each["kind"] == "ScaledObject"]
    scaled["spec"]["cooldown"] = 0
    assert not keda["ScaledObject"].is_valid(scaled)


@pytest.mark.parametrize("name", ["plain", "karpenter"])
def test_kustomize_builds_the_same_objects(tmp_path: Path, name: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    out = tmp_path / "out"
    out.mkdir()
    for file, text in as_texts(rendered(tmp_path, CONFIGURATIONS[name])).items():
        (out / file).write_text(text)
    built = subprocess.run(["kubectl", "kustomize", str(out)], capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    assert by_name({"all": documents}) == by_name({"all": objects_of(tmp_path, name)})


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_objects_refer_to_is_there(tmp_path: Path, name: str) -> None:
    objects = by_name({"all": objects_of(tmp_path, name)})
    assert set(references(objects)) <= set(objects)


def references(objects: dict[tuple[str, str], Document]) -> Iterator[tuple[str, str]]:
    """Everything of ours that something points to; Secrets and claims are the reader's."""
    for (kind, _), document in objects.items():
        spec = document.get("spec", {})
        if kind == "ScaledObject":
            yield spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]
            for trigger in spec["triggers"]:
                if "authenticationRef" in trigger:
                    yield "TriggerAuthentication", trigger["authenticationRef"]["name"]
                for key in ("url", "scalerAddress"):
                    if key in trigger["metadata"]:
                        host = trigger["metadata"][key].removeprefix("http://").partition("/")[0]
                        name, namespace, *_ = host.split(".")
                        assert namespace == document["metadata"]["namespace"]
                        yield "Service", name
        if "template" in spec:
            yield "ServiceAccount", spec["template"]["spec"]["serviceAccountName"]
            for volume in spec["template"]["spec"]["volumes"]:
                if "configMap" in volume:
                    yield "ConfigMap", volume["configMap"]["name"]
