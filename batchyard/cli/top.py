"""`batchyard top`: the system live, until q or Ctrl-C."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from batchyard.cli.invocation import Invocation
from batchyard.cli.options import api_options
from batchyard.errors import BatchyardError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from batchyard.client import Client


@click.command()
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Of refreshing.",
)
@api_options
@click.pass_obj
def top(invocation: Invocation, /, *, interval: float, url: str | None, api_key: str | None) -> None:
    """Watch queues, pools, consumers, batch sizes and rates. q or Ctrl-C leaves."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        raise click.UsageError("top needs a terminal; for one look there is `batchyard status`")
    with invocation.client(url=url, api_key=api_key) as client:
        first = _look(client, width=console.width)
        with (
            _keys() as keys,
            Live(first, console=console, screen=True, auto_refresh=False) as live,
            suppress(KeyboardInterrupt),
        ):
            while not keys.quits_within(interval):
                live.update(_look(client, width=console.width), refresh=True)


def _look(client: Client, *, width: int) -> RenderableType:
    """The dashboard, or, while the API is away, why there is none."""
    from rich.console import Group
    from rich.text import Text

    from batchyard.cli.dashboard import dashboard

    try:
        shown = dashboard(client.status(), width=width)
    except BatchyardError as error:
        shown = Text(error.message, style="red")
    return Group(shown, Text("\nq leaves", style="dim"))


class _Keys:
    """Single key presses of the terminal."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def quits_within(self, seconds: float) -> bool:
        """Wait; true as soon as q (or the end of input) comes."""
        if self._descriptor is None:
            time.sleep(seconds)
            return False
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._descriptor], [], [], left)
            if ready and os.read(self._descriptor, 1) in {b"q", b"Q", b"\x1b", b""}:
                return True
        return False


@contextmanager
def _keys() -> Iterator[_Keys]:
    """The terminal without line editing or echo, for as long as it lasts."""
    if not sys.stdin.isatty():
        yield _Keys(None)
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
