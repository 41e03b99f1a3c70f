"""All manifests of a configuration, as documents and as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from batchyard.settings import Settings
from batchyard_scaler.render.hardware import drain_seconds
from batchyard_scaler.render.keda import TOLERANCE_BY_DEFAULT_SINCE, is_exact, minor_version
from batchyard_scaler.render.objects import Document, object_name
from batchyard_scaler.render.pools import pool_documents
from batchyard_scaler.render.presets import PRESETS
from batchyard_scaler.render.services import (
    api_documents,
    migration_documents,
    scaler_documents,
    shared_documents,
)

MARK = "# Made by `batchyard render`"
HEADER = f"{MARK}: change batchyard.toml and render again, or patch this with an overlay of kustomize.\n"


def manifests(settings: Settings, *, release: str) -> dict[str, list[Document]]:
    """File name → its documents, of settings in which `find_faults` finds none; the same for the same settings.

    `release` is the version of batchyard that images are named by.
    """
    image = settings.kubernetes.image.replace("{version}", release)
    settings = dataclasses.replace(settings, kubernetes=dataclasses.replace(settings.kubernetes, image=image))
    files = {
        "config.yaml": shared_documents(settings),
        "migrate.yaml": migration_documents(settings),
        "api.yaml": api_documents(settings),
        "scaler.yaml": scaler_documents(settings),
        **{f"pool-{object_name(pool)}.yaml": pool_documents(settings, pool) for pool in settings.pools},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
    }
    return {**files, "kustomization.yaml": [kustomization]}


def notes(settings: Settings) -> list[str]:
    """What the reader of the manifests should know and no document can say."""
    found = []
    version = settings.kubernetes.version
    if not is_exact(settings) or minor_version(version) < TOLERANCE_BY_DEFAULT_SINCE:
        gate = " without the feature gate HPAConfigurableTolerance" if is_exact(settings) else ""
        found.append(
            f"Kubernetes {version}{gate} with KEDA {settings.kubernetes.keda_version} ignores changes of a pool within "
            "a tenth, as from 10 to 11"
        )
    preset, spot = PRESETS[settings.kubernetes.preset], [pool for pool in settings.pools if pool.capacity == "spot"]
    if spot and preset.notice_needs:
        found.append(f"for consumers to hear that their spot machine is taken back it takes {preset.notice_needs}")
    for pool in spot:
        needed = drain_seconds(settings, pool)
        if preset.notice_seconds is not None and needed > preset.notice_seconds:
            found.append(
                f"pods of the pool {pool.name} are given {preset.notice_seconds:g} s when their spot machine is taken "
                f"back, and may drain for {needed:g} s: a batch that takes longer than that is repeated elsewhere"
            )
    return found


def as_text(documents: Sequence[Document]) -> str:
    """YAML that every reader of Kubernetes takes alike."""
    return HEADER + "---\n".join(yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120) for each in documents)


def as_texts(files: Mapping[str, Sequence[Document]]) -> dict[str, str]:
    return {name: as_text(documents) for name, documents in files.items()}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Lists indented, texts of several lines as blocks, nothing repeated by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted where some reader may see a number, a date or a truth in it: the versions of YAML differ in that."""
    style = None
    if "\n" in text:
        style = "|"
    elif not re.match("/|[A-Za-z].", text):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)
