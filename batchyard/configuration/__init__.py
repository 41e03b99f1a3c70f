"""Reading the configuration: flag > environment (`BATCHYARD_…`) > `batchyard.toml` > default, every fault at once.

A setting is named by its path in the file: `server.bind`, `pools.local.max`. In the environment that is
`BATCHYARD_SERVER__BIND` and `BATCHYARD_POOLS__LOCAL__MAX`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from batchyard.configuration.building import Builder
from batchyard.configuration.faults import redacted
from batchyard.configuration.sources import Given, Path_, from_environment, from_file, from_overrides
from batchyard.errors import ConfigurationError
from batchyard.settings import Settings

__all__ = ["CONFIG_NAME", "EXAMPLE", "Check", "load_settings", "redacted"]

Check = Callable[[Settings], Iterable[tuple[str, str]]]
"""Pairs of the setting that is at fault, by its dotted name, and the whole fault."""

CONFIG_NAME = "batchyard.toml"
STATE_NAME = ".batchyard"

EXAMPLE = """\
[models.minilm]
runtime = "sentence-transformers"  # or "my_package.my_module:MyModel"
source = "sentence-transformers/all-MiniLM-L6-v2"  # a folder, "package:NAME/folder", or a hub id

[pools.local]
models = ["minilm"]
min = 0
max = 2
"""
"""The least that is worth writing; everything else has a default."""


def load_settings(
    config: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    check: Check | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Read, merge and check everything; raises ConfigurationError that names all faults.

    `config` defaults to BATCHYARD_CONFIG, then to `batchyard.toml` in the working directory, which may be absent.
    `state` defaults to BATCHYARD_STATE, then to `state_dir` in the file, then to `.batchyard` beside the file.
    `overrides` maps names such as "server.bind" to values; None stands for "not given".
    `check` finds what else is wrong for the purpose at hand; it is reported with the rest.
    """
    faults: list[str] = []
    path = _config_path(config, environ, faults)
    given: dict[Path_, Given] = {}
    if path is not None:
        given |= from_file(path, faults)
    given |= from_environment(environ, given, faults)
    given |= from_overrides(overrides or {})
    folder = path.parent if path is not None else Path.cwd()
    builder = Builder(given=given, folder=folder, faults=faults)
    settings = builder.settings(
        state_dir=state or environ.get("BATCHYARD_STATE") or None, default_state=folder / STATE_NAME, config_path=path
    )
    if check is not None:
        # A refused value has its default in its place, which says nothing about what is meant.
        faults += [fault for name, fault in check(settings) if name not in builder.refused]
    if faults:
        raise ConfigurationError(faults)
    return settings


def _config_path(config: str | os.PathLike[str] | None, environ: Mapping[str, str], faults: list[str]) -> Path | None:
    named = config or environ.get("BATCHYARD_CONFIG") or None
    path = Path(named or CONFIG_NAME).expanduser().absolute()
    if path.is_file():
        return path
    if named is not None:
        faults.append(f"the configuration file {path} does not exist")
    return None
