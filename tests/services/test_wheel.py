"""The built wheel, installed alone outside the checkout, is the whole of batchyard."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.services.up import running_up

REPOSITORY = Path(__file__).parents[2]
PACKAGES = (
    "batchyard",
    "batchyard_producer",
    "batchyard_consumers",
    "batchyard_scaler",
    "batchyard_migrations",
)
CONFIG = """
[models.lengths]
runtime = "batchyard_consumers.samples:Lengths"
[pools.local]
models = ["lengths"]
device = "cpu"
"""
WHERE = "import importlib, json, sys; print(json.dumps([importlib.import_module(n).__file__ for n in sys.argv[1:]]))"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A virtual environment with nothing of batchyard but the wheel; commands run in an empty folder."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment without what would lead back to the checkout."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BATCHYARD_"))}
        return {**kept, "PATH": f"{self.folder / 'venv' / 'bin'}{os.pathsep}{kept['PATH']}"}

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def program(self, name: str) -> Path:
        """A program in the environment's bin folder."""
        return self.folder / "venv" / "bin" / name

    def run(self, command: Sequence[str]) -> str:
        """What `command`, found in the environment's bin folder, prints; fails with its errors."""
        done = subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout with what the lock installed."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in an environment of its own, which borrows the dependencies of this one and not its checkout.

    A folder named by a .pth file is searched for packages, but the .pth files in it are not read: so the editable
    installation here stays out of sight.
    """
    folder = tmp_path_factory.mktemp("installation")
    venv.create(folder / "venv", symlinks=True)
    (folder / "work").mkdir()
    python = folder / "venv" / "bin" / "python"
    _pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    site_packages = Path(
        sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    )
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(folder=folder)


def test_the_wheel_holds_the_packages_typed_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_source_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = [REPOSITORY / "batchyard", *(next(REPOSITORY.glob(f"*/{package}")) for package in PACKAGES[1:])]
    sources = {str(file.relative_to(folder.parent)) for folder in folders for file in folder.rglob("*.py")}
    assert sources - names == set()


def test_every_package_imports_from_the_wheel(installation: Installation) -> None:
    files = json.loads(installation.run(["python", "-c", WHERE, *PACKAGES]))
    outside = [file for file in files if not Path(file).is_relative_to(installation.folder)]
    assert outside == []


def test_the_command_tells_its_version(installation: Installation) -> None:
    assert version("batchyard") in installation.run(["batchyard", "--version"])


@pytest.mark.slow
def test_up_serves_a_job_from_the_wheel(installation: Installation) -> None:
    variables = {**installation.environment, "OMP_NUM_THREADS": "1"}
    with running_up(
        installation.work, config=CONFIG, program=[installation.program("batchyard")], variables=variables
    ) as up:
        done = up.run("submit", "lengths", "seven c", "--timeout", "60", timeout=90)
        modules = {word for child in up.children("-m") for word in child.cmdline() if word.startswith("/")}

        assert (done.returncode, json.loads(done.stdout)) == (0, {"length": 7}), done.stderr
        assert modules == {str(installation.program("python"))}
    assert up.lines[-1] == "ended"


def _pip(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
