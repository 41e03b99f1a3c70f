"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from batchyard.sdk.calls import Options

F = TypeVar("F", bound=Callable[..., Any])


def api_options(command: F) -> F:
    """Where the API is, for commands that speak to it."""
    command = click.option("--api-key", metavar="KEY", help="Default: BATCHYARD_API_KEY.")(command)
    return click.option(
        "--url", metavar="URL", help="The API; default: BATCHYARD_URL, else the address that the configuration binds."
    )(command)


def spot_options(command: F) -> F:
    """Spot capacity emulated on this machine."""
    for option in (
        click.option(
            "--spot-speed",
            type=click.FloatRange(min=0, min_open=True),
            default=1.0,
            show_default=True,
            metavar="FACTOR",
            help="Seconds of --spot-trace that pass in one.",
        ),
        click.option(
            "--spot-notice",
            type=click.FloatRange(min=0),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="Between the notice of a preemption (SIGTERM) and its end (SIGKILL).",
        ),
        click.option(
            "--spot-trace",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Preempt this machine's consumers of spot pools as this CSV of capacity over time says.",
        ),
    ):
        command = option(command)
    return command


def spot_arguments(trace: Path | None, *, notice: float, speed: float) -> list[str]:
    """The same as arguments of another command; none without a trace."""
    if trace is None:
        return []
    return ["--spot-trace", str(trace.absolute()), "--spot-notice", f"{notice:g}", "--spot-speed", f"{speed:g}"]


def job_options(command: F) -> F:
    """What jobs may be told at submission; read them back with `options_of`."""
    for option in reversed(
        [
            click.option("--params", metavar="JSON", help="An object handed to the model with every input."),
            click.option("--priority", type=click.IntRange(0, 9), help="9 goes first; 5 where not given."),
            click.option(
                "--tolerant/--firm", default=None, help="May, or may not, run on spot capacity; default: as the model."
            ),
            click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS"),
            click.option("--max-failures", type=click.IntRange(1, 100), help="Fails for good at this many failures."),
            click.option("--label", "labels", multiple=True, metavar="LABEL"),
        ]
    ):
        command = option(command)
    return command


def options_of(given: dict[str, Any]) -> Options:
    """The options of a submission among a command's arguments."""
    options = Options()
    if given.get("params") is not None:
        try:
            options["params"] = msgspec.json.decode(given["params"], type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise click.BadParameter(f"must be a JSON object: {error}", param_hint="--params") from error
    if given.get("priority") is not None:
        options["priority"] = given["priority"]
    if given.get("tolerant") is not None:
        options["tolerant"] = given["tolerant"]
    if given.get("deadline") is not None:
        options["deadline_seconds"] = given["deadline"]
    if given.get("max_failures") is not None:
        options["max_failures"] = given["max_failures"]
    if given.get("labels"):
        options["labels"] = list(given["labels"])
    return options
