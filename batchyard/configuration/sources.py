"""Where values come from: the file, the environment, the command line. Each gives a flat map from path to value."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from batchyard.configuration.faults import listed, nearest
from batchyard.settings import (
    BrokerSettings,
    BudgetSettings,
    DatabaseSettings,
    HardwareSettings,
    KubernetesSettings,
    LimitSettings,
    ModelSettings,
    PoolSettings,
    QueueSettings,
    RetentionSettings,
    ServerSettings,
    StorageSettings,
    WebhookSettings,
)

Path_ = tuple[str, ...]
"""Where a setting stands: ("server", "bind")."""

SECTIONS: Mapping[str, type[Any]] = {
    "server": ServerSettings,
    "database": DatabaseSettings,
    "broker": BrokerSettings,
    "queues": QueueSettings,
    "limits": LimitSettings,
    "retention": RetentionSettings,
    "storage": StorageSettings,
    "webhooks": WebhookSettings,
    "kubernetes": KubernetesSettings,
    "budget": BudgetSettings,
}
NAMED_SECTIONS: Mapping[str, type[Any]] = {
    "hardware": HardwareSettings,
    "models": ModelSettings,
    "pools": PoolSettings,
}
TOP_LEVEL = ("log_level", "state_dir")

PREFIX = "BATCHYARD_"
_NO_SETTINGS = {"BATCHYARD_CONFIG", "BATCHYARD_STATE", "BATCHYARD_URL", "BATCHYARD_API_KEY"}


@dataclass(frozen=True)
class Given:
    value: Any
    origin: str
    is_text: bool = False
    """A string from the environment or the command line that may stand for a number, a truth value or a list."""


def keys_of(section: str) -> list[str]:
    kind = SECTIONS.get(section) or NAMED_SECTIONS[section]
    return [field.name for field in fields(kind) if field.name != "name"]


def from_file(path: Path, faults: list[str]) -> dict[Path_, Given]:
    try:
        with path.open("rb") as file:
            tree = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"{path} cannot be read: {error}")
        return {}
    found: dict[Path_, Given] = {}
    for name, value in tree.items():
        if name in TOP_LEVEL:
            found[(name,)] = Given(value, path.name)
        elif name in SECTIONS:
            _section((name,), value, known=keys_of(name), origin=path.name, found=found, faults=faults)
        elif name in NAMED_SECTIONS:
            _named_sections(name, value, path.name, found, faults)
        else:
            known = [*SECTIONS, *NAMED_SECTIONS, *TOP_LEVEL]
            faults.append(
                f"{name} ({path.name}) is not a section or setting{nearest(name, known)} (known: {listed(known)})"
            )
    return found


def _named_sections(section: str, value: Any, origin: str, found: dict[Path_, Given], faults: list[str]) -> None:
    if not isinstance(value, dict):
        faults.append(f"{section} ({origin}) must hold tables, each with a name: [{section}.NAME]")
        return
    for name, table in value.items():
        # A name without any key is still named: the builder must see it to say what is missing.
        found[(section, name)] = Given(None, origin)
        _section((section, name), table, known=keys_of(section), origin=origin, found=found, faults=faults)


def _section(
    path: Path_, value: Any, *, known: Iterable[str], origin: str, found: dict[Path_, Given], faults: list[str]
) -> None:
    if not isinstance(value, dict):
        faults.append(f"{'.'.join(path)} ({origin}) must be a table: [{'.'.join(path)}]")
        return
    known = list(known)
    for key, item in value.items():
        if key not in known:
            faults.append(
                f"{'.'.join((*path, key))} ({origin}) is not a setting{nearest(key, known)} (known: {listed(known)})"
            )
        elif key == "options" and isinstance(item, dict):
            found |= {(*path, key, option): Given(inner, origin) for option, inner in item.items()}
        else:
            found[(*path, key)] = Given(item, origin)


def from_environment(environ: Mapping[str, str], named: Iterable[Path_], faults: list[str]) -> dict[Path_, Given]:
    """Settings in the environment; `named` holds the file's paths, whose models and pools a variable may mean."""
    names = {path[:2] for path in named if path[0] in NAMED_SECTIONS}
    found: dict[Path_, Given] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in _NO_SETTINGS:
            continue
        path = _path_of(variable, names)
        if path is not None:
            found[path] = Given(environ[variable], f"environment {variable}", is_text=True)
        elif problem := _misspelled(variable):
            faults.append(problem)
    return found


def _path_of(variable: str, names: set[Path_]) -> Path_ | None:
    parts = variable.removeprefix(PREFIX).lower().split("__")
    match parts:
        case [top] if top in TOP_LEVEL:
            return (top,)
        case [section, key] if section in SECTIONS and key in keys_of(section):
            return (section, key)
        case [section, name, key] if section in NAMED_SECTIONS and key in keys_of(section):
            return (section, _meant(section, name, names), key)
        case ["models", name, "options", option]:
            return ("models", _meant("models", name, names), "options", option)
    return None


def _meant(section: str, name: str, names: set[Path_]) -> str:
    """The model or pool of the file whose name reads like this in a variable, else the name as it is."""
    for known_section, known in sorted(names):
        if known_section == section and known.lower().translate(_VARIABLE_LETTERS) == name:
            return known
    return name


_VARIABLE_LETTERS = str.maketrans({"-": "_", ".": "_", "@": "_"})


def _misspelled(variable: str) -> str | None:
    """The fault of a variable that was surely meant for us. Others are left alone: Kubernetes itself sets
    BATCHYARD_API_SERVICE_HOST and such for a service named batchyard-api."""
    known = [f"{PREFIX}{section}__{key}".upper() for section in SECTIONS for key in keys_of(section)]
    known += [f"{PREFIX}{top}".upper() for top in TOP_LEVEL]
    if "__" in variable.removeprefix(PREFIX):
        return f"environment {variable} is not a setting{nearest(variable, known)}"
    if meant := [name for name in known if name.replace("__", "_") == variable]:
        return f'environment {variable} is not a setting; did you mean "{meant[0]}"?'
    return None


def from_overrides(overrides: Mapping[str, Any]) -> dict[Path_, Given]:
    """Values of the command line or of code, by dotted name; an unknown name raises KeyError."""
    found: dict[Path_, Given] = {}
    for name, value in overrides.items():
        if value is None:
            continue
        section, _, rest = name.partition(".")
        if section in NAMED_SECTIONS:
            label, _, key = rest.rpartition(".")
            path: Path_ = (section, label, key)
        else:
            path = (section, rest) if rest else (section,)
        if path[0] not in TOP_LEVEL and path[-1] not in keys_of(path[0]):
            raise KeyError(name)
        found[path] = Given(value, "given on the command line", is_text=isinstance(value, str))
    return found
