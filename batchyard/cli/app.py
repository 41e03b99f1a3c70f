"""The root of the command: global options, commands loaded when named, errors as one line."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from typing import Any, NoReturn

import click

from batchyard.cli.extras import needs, require
from batchyard.cli.invocation import Invocation, global_options
from batchyard.errors import BatchyardError, ConfigurationError, MissingExtra
from batchyard.processes import end_with_parent

OWN = {
    "up": "batchyard.cli.up:up",
    "demo": "batchyard.cli.demo:demo",
    "submit": "batchyard.cli.jobs:submit",
    "map": "batchyard.cli.map:map_",
    "status": "batchyard.cli.status:status",
    "top": "batchyard.cli.top:top",
    "models": "batchyard.cli.models:models",
    "pools": "batchyard.cli.pools:pools",
    "pause": "batchyard.cli.models:pause",
    "resume": "batchyard.cli.models:resume",
    "redrive": "batchyard.cli.redrive:redrive",
    "keys": "batchyard.cli.keys:keys",
    "tenants": "batchyard.cli.tenants:tenants",
    "webhooks": "batchyard.cli.webhooks:webhooks",
    "migrate": "batchyard.cli.migrate:migrate",
}
"""Command → where it is; imported only when asked for."""

OF_COMPONENTS = {
    "api": "producer",
    "worker": "consumers",
    "check": "consumers",
    "scaler": "scaler",
    "render": "scaler",
    "simulate": "scaler",
}
"""Command of a component → the extra that brings it."""

MAINSTAYS = {
    "producer": ("sqlalchemy", "kombu", "uvicorn"),
    "consumers": ("sqlalchemy", "celery", "torch"),
    "scaler": ("sqlalchemy", "prometheus_client", "yaml"),
}
"""Extra → packages by which it is known to be there."""

ENTRY_POINTS = "batchyard.commands"


class Commands(click.Group):
    """Finds commands by name: ours in `OWN`, everyone else's through entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*OWN, *sorted(set(OF_COMPONENTS) | {point.name for point in metadata.entry_points(group=ENTRY_POINTS)})]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = _own(cmd_name) or _of_component(cmd_name)
        if command is not None and not any(isinstance(p, click.Option) and p.name == "config" for p in command.params):
            _with_global_options(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            try:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str(90) if command else ""))
            except MissingExtra as missing:
                rows.append((name, f'(needs the extra "{missing.details["extra"]}")'))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _own(name: str) -> click.Command | None:
    if name not in OWN:
        return None
    module, _, attribute = OWN[name].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command


def _of_component(name: str) -> click.Command | None:
    points = metadata.entry_points(group=ENTRY_POINTS, name=name)
    feature, extra = f"batchyard {name}", OF_COMPONENTS.get(name, "all")
    for point in points:
        require(MAINSTAYS.get(extra, ()), feature=feature, extra=extra)
        with needs(feature=feature, extra=extra):
            command: click.Command = point.load()
            return command
    return None


def _with_global_options(command: click.Command) -> None:
    """`--config` and `--state` work before and after the command's name, and after a subcommand's."""
    command.params.extend(global_options())
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _with_global_options(inner)


@click.command(cls=Commands, params=list(global_options()), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="batchyard", prog_name="batchyard")
@click.pass_context
def root(context: click.Context) -> None:
    """Queue-driven asynchronous batch inference.

    `batchyard up` runs everything on this machine; the other commands talk to it.
    """
    context.ensure_object(Invocation)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit: 0, 1 on an error, 2 on a mistake in flags or configuration, 130 on Ctrl-C."""
    end_with_parent()
    try:
        result: Any = root.main(args=arguments, prog_name="batchyard", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(mistake.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left (`batchyard status | head`).
        sys.stderr.close()
        sys.exit(141)
    except BatchyardError as error:
        click.echo(f"Error: {error.message}", err=True)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
