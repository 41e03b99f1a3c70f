"""`batchyard up`: the whole system on this machine, in one command."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import click

from batchyard.cli.extras import require
from batchyard.cli.invocation import Invocation
from batchyard.cli.options import spot_arguments, spot_options
from batchyard.configuration import CONFIG_NAME, EXAMPLE
from batchyard.spot_trace import read_spot


@click.command()
@click.option("--bind", metavar="HOST:PORT", help="Where the API listens; default: server.bind; port 0: any free one.")
@spot_options
@click.option("-v", "--verbose", is_flag=True, help="Show everything that the API and the scaler log.")
@click.pass_obj
def up(
    invocation: Invocation,
    /,
    *,
    bind: str | None,
    spot_trace: Path | None,
    spot_notice: float,
    spot_speed: float,
    verbose: bool,
) -> int:
    """Run everything on this machine: the API, the database, the broker, and each pool's consumers.

    Ctrl-C (or SIGTERM) lets running batches finish, keeps what is queued for the next time, and ends: within the
    longest drain_seconds of a pool and about three seconds more. A second Ctrl-C ends at once.
    """
    settings = invocation.settings(**{"server.bind": bind})
    if settings.config_path is None and not settings.models:
        click.echo(_what_to_write(), err=True)
        return 2
    if spot_trace is not None:
        read_spot(spot_trace)  # what is wrong with it is said before anything starts
    require(("celery", "sqlalchemy", "torch", "uvicorn"), feature="batchyard up", extra="all")
    from batchyard.cli.supervisor import Supervisor

    spot = spot_arguments(spot_trace, notice=spot_notice, speed=spot_speed)
    supervisor = Supervisor(invocation, settings, say=click.echo, verbose=verbose, scaler_arguments=spot)
    stop_on_signals(supervisor.stop)
    return supervisor.run()


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGINT, SIGTERM and SIGHUP call `stop`, as often as they come."""

    def handle(*_: object) -> None:
        stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)


def _what_to_write() -> str:
    example = "".join(f"    {line}\n" for line in EXAMPLE.splitlines())
    here = Path.cwd() / CONFIG_NAME
    return (
        f"There is no {here}, so there is no model to run. Write one, for example:\n\n{example}\n"
        f"and start `batchyard up` again; another place is named by --config or BATCHYARD_CONFIG.\n"
        f"To see it work first: {Path(sys.argv[0]).name} demo"
    )
