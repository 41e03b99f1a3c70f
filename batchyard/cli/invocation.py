"""What every command is given: where the configuration and the state are, and what follows from them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from batchyard.configuration import Check, load_settings
from batchyard.settings import Settings

if TYPE_CHECKING:
    from batchyard.client import Client
    from batchyard.store.base import JobStore


@dataclass
class Invocation:
    """One run of the command. Commands take it with `@click.pass_obj`; filled by the global options."""

    config: str | None = None
    state: str | None = None

    def settings(self, check: Check | None = None, /, **overrides: Any) -> Settings:
        """The configuration, with the command's own flags on top: `settings(**{"server.bind": bind})`; `check` finds
        what else is wrong with it for this command.

        Also makes models that stand beside the configuration file importable.
        """
        settings = load_settings(self.config, self.state, overrides, check=check)
        if settings.config_path is not None and (folder := str(settings.config_path.parent)) not in sys.path:
            sys.path.insert(0, folder)
        return settings

    def child_command(self, *arguments: str) -> list[str]:
        """How to start another command of ours with the same configuration and state, in this Python."""
        options: Sequence[str] = [
            *(["--config", self.config] if self.config else []),
            *(["--state", self.state] if self.state else []),
        ]
        return [sys.executable, "-m", "batchyard.cli", *options, *arguments]

    def client(self, *, url: str | None, api_key: str | None) -> Client:
        """A client for the API: as flagged, else BATCHYARD_URL, else the address that the configuration binds."""
        from batchyard.client import Client

        return Client(url or self._configured_url(), api_key=api_key)

    def _configured_url(self) -> str | None:
        import os

        if os.environ.get("BATCHYARD_URL"):
            return None
        server = self.settings().server
        return f"http://{server.bind.replace('0.0.0.0', '127.0.0.1', 1)}"

    def store(self) -> JobStore:
        """The database, opened in this process: for the commands that administer."""
        from batchyard.store.open import open_store

        settings = self.settings()
        return open_store(settings.database.url, state_dir=settings.state_dir)


def remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Callback of `--config` and `--state`, given before or after the command's name."""
    if value is not None and parameter.name is not None:
        setattr(context.ensure_object(Invocation), parameter.name, value)


def global_options() -> list[click.Option]:
    return [
        click.Option(
            ["--config"],
            metavar="FILE",
            help="The configuration; default: BATCHYARD_CONFIG, else ./batchyard.toml.",
            expose_value=False,
            callback=remember,
        ),
        click.Option(
            ["--state"],
            metavar="DIR",
            help="The state folder; default: BATCHYARD_STATE, else .batchyard beside the configuration.",
            expose_value=False,
            callback=remember,
        ),
    ]
