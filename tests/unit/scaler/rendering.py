"""Configurations of a cluster, and what is rendered of them."""

from pathlib import Path
from typing import Any

from batchyard.configuration import load_settings
from batchyard.settings import Settings
from batchyard_scaler.render.faults import find_faults
from batchyard_scaler.render.manifests import manifests
from batchyard_scaler.render.objects import Document

SERVERS = """
[database]
url = "postgresql+psycopg://db/batchyard"
[broker]
url = "redis://cache/0"
[storage]
url = "s3://bucket/payloads"
"""
MODEL = '[models.m]\nruntime = "my_models:Mine"\n'
POOLS = """
[pools.gpu]
models = ["m"]
min = 1
max = 4
[pools.spot]
models = ["m"]
capacity = "spot"
max = 40
"""
FLEET = SERVERS + MODEL + POOLS


def settings_of(folder: Path, text: str, **environ: str) -> Settings:
    """Read and checked as the command does it."""
    path = folder / "batchyard.toml"
    path.write_text(text)
    return load_settings(path, environ=environ, check=find_faults)


def rendered(folder: Path, text: str, **environ: str) -> dict[str, list[Document]]:
    return manifests(settings_of(folder, text, **environ), release="1.2.3")


def by_name(files: dict[str, list[Document]]) -> dict[tuple[str, str], Document]:
    """(kind, name) → the one object."""
    documents = [each for name, file in files.items() if name != "kustomization.yaml" for each in file]
    found = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    assert len(found) == len(documents)
    return found


def pod_of(document: Document) -> Any:
    return document["spec"]["template"]["spec"]


def container_of(document: Document) -> Any:
    [only] = pod_of(document)["containers"]
    return only
