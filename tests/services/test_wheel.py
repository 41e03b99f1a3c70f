"""The built wheel, installed alone outside the checkout, is the whole of batchyard."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from batchyard.cli.app import OF_COMPONENTS
from tests.services.up import running_up

REPOSITORY = Path(__file__).parents[2]
LOCK = REPOSITORY / "requirements.lock"
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
NEEDED = {
    "up": "all",
    "demo": "all",
    "api": "producer",
    "worker --pool local": "consumers",
    "check": "consumers",
    "scaler --local": "scaler",
    "render": "scaler",
    "migrate": "producer",
    "keys list": "producer",
    "tenants list": "producer",
}
"""Command → the extra that it needs."""
MISSING = """
import batchyard
from batchyard.testing import memory_store
for use in (batchyard.Client.direct, memory_store):
    try:
        use()
    except batchyard.MissingExtra as missing:
        print(missing.code, missing.details["extra"], missing)
"""
WHERE = "import importlib, json, sys; print(json.dumps([importlib.import_module(n).__file__ for n in sys.argv[1:]]))"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A virtual environment with nothing of batchyard but the wheel; commands run in a folder with a configuration."""

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
        done = self.attempt(command)
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout

    def attempt(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """The same, however it ends."""
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
        )


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
    made = _installation(tmp_path_factory.mktemp("installation"), "--no-deps", "--no-index", wheel)
    folder = str(made.folder / "venv")
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}))
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel with what it asks for without an extra, in the versions of the lock."""
    return _installation(tmp_path_factory.mktemp("bare"), "--constraint", LOCK, wheel)


@pytest.fixture(scope="module")
def complete(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The wheel with what its extra "all" asks for, in the versions of the lock."""
    made = _installation(tmp_path_factory.mktemp("complete"), "--constraint", LOCK, f"{wheel}[all]")
    yield made
    # More than a gigabyte, of which pytest would keep three.
    shutil.rmtree(made.folder)


def _installation(folder: Path, *arguments: str | Path) -> Installation:
    venv.create(folder / "venv", symlinks=True)
    (folder / "work").mkdir()
    (folder / "work" / "batchyard.toml").write_text(CONFIG)
    _pip("--python", folder / "venv" / "bin" / "python", "install", "--no-compile", *arguments)
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
def test_the_base_is_the_sdk_and_the_command_alone(bare: Installation) -> None:
    heavy = ("torch", "celery", "kombu", "sqlalchemy", "numpy", "uvicorn")
    code = f"import importlib.util; print([name for name in {heavy} if importlib.util.find_spec(name)])"

    assert bare.run(["python", "-c", code]) == "[]\n"
    listed = " ".join(bare.run(["batchyard", "--help"]).split())
    for name, extra in OF_COMPONENTS.items():
        assert f' {name} (needs the extra "{extra}")' in listed
    away = bare.attempt(["batchyard", "models", "--url", "ftp://nowhere"])
    assert (away.returncode, "is not one of HTTP" in away.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "extra"), NEEDED.items())
def test_a_command_of_the_base_names_the_extra_that_it_needs(bare: Installation, command: str, extra: str) -> None:
    done = bare.attempt(["batchyard", *command.split()])

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert f'needs the extra "{extra}": pip install "batchyard[{extra}]"' in done.stderr
    assert [path.name for path in bare.work.iterdir()] == ["batchyard.toml"]


@pytest.mark.slow
def test_the_sdk_of_the_base_names_the_extra_that_it_needs(bare: Installation) -> None:
    direct, store = bare.run(["python", "-c", MISSING]).splitlines()

    assert direct.startswith("missing_extra producer ")
    assert 'pip install "batchyard[producer]"' in direct
    assert store == 'missing_extra producer memory_store needs the extra "producer": pip install "batchyard[producer]"'


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_up_serves_a_job_from_the_wheel_and_its_own_dependencies(complete: Installation) -> None:
    variables = {**complete.environment, "OMP_NUM_THREADS": "1"}
    with running_up(complete.work, config=CONFIG, program=[complete.program("batchyard")], variables=variables) as up:
        done = up.run("submit", "lengths", "seven c", "--timeout", "60", timeout=90)
        modules = {word for child in up.children("-m") for word in child.cmdline() if word.startswith("/")}

        assert (done.returncode, json.loads(done.stdout)) == (0, {"length": 7}), done.stderr
        assert modules == {str(complete.program("python"))}
    assert up.lines[-1] == "ended"
    # What is not in "all" is still named.
    demo = complete.attempt(["batchyard", "demo"])
    assert 'needs the extra "demo": pip install "batchyard[demo]"' in demo.stderr


def _pip(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
