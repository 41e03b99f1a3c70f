"""`batchyard scaler`: sizes pools until it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import click

from batchyard.cli.invocation import Invocation
from batchyard.logs import configure_logging
from batchyard_scaler.local import LocalScaler


@click.command()
@click.option("--local", is_flag=True, help="Run the pools' consumers as processes of this machine.")
@click.pass_obj
def scaler(invocation: Invocation, /, *, local: bool) -> None:
    """Start and drain consumers by backlog, between each pool's min and max. SIGTERM drains all of them."""
    if not local:
        raise click.UsageError("say where the consumers run: --local starts them on this machine")
    settings = invocation.settings()
    configure_logging(settings.log_level)
    store = invocation.store()

    def command(pool: str) -> Sequence[str]:
        return invocation.child_command("worker", "--pool", pool)

    running = LocalScaler(settings, store=store, command=command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    try:
        running.run()
    finally:
        store.close()
