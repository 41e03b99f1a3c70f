"""The images of `deploy/` and the manifests speak of the same things."""

import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from batchyard.cli.app import OF_COMPONENTS
from batchyard_scaler.render.objects import USER_ID, Role
from tests.readme import example
from tests.unit.scaler.rendering import by_name, container_of, rendered

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(role: str) -> dict[str, str]:
    """The last of each kind; lines that go on are joined."""
    text = (REPOSITORY / "deploy" / f"{role}.Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    return dict(re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE))


def test_there_is_an_image_for_each_role() -> None:
    found = {path.name.removesuffix(".Dockerfile") for path in (REPOSITORY / "deploy").glob("*.Dockerfile")}
    assert found == set(get_args(Role))


@pytest.mark.parametrize("role", get_args(Role))
def test_an_image_installs_what_its_command_needs_and_runs_as_the_manifests_do(role: str) -> None:
    text = (REPOSITORY / "deploy" / f"{role}.Dockerfile").read_text(encoding="utf-8")
    command = json.loads(instructions(role)["CMD"])[0]
    assert command == role
    assert re.findall(r"\.\[(\w+)\]", text) == [OF_COMPONENTS[command]]
    assert OF_COMPONENTS[command] in PROJECT["project"]["optional-dependencies"]
    assert instructions(role)["USER"] == f"{USER_ID}:{USER_ID}"
    assert f"--uid {USER_ID} " in text
    assert json.loads(instructions(role)["ENTRYPOINT"]) == list(PROJECT["project"]["scripts"])
    assert f"-t batchyard-{role}:{PROJECT['project']['version']} ." in text


def test_the_images_are_built_from_the_whole_distribution() -> None:
    kept = {
        line.removeprefix("!") for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    packages = {path.split("/")[0] for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    needed = {"pyproject.toml", "requirements.lock", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert kept == packages | needed
    assert all((REPOSITORY / name).exists() for name in kept)


def test_the_fleet_of_the_readme_is_rendered(tmp_path: Path) -> None:
    text = example("toml", having="[database]") + example("toml", having="[kubernetes]")
    objects = by_name(rendered(tmp_path, text))
    gpu = container_of(objects["Deployment", "batchyard-worker-gpu"])
    assert {mount["mountPath"] for mount in gpu["volumeMounts"]} >= {"/shared", "/models"}
    assert ("ScaledObject", "batchyard-worker-spot") in objects
