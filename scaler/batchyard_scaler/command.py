"""`batchyard scaler`: sizes pools until it is told to end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

from batchyard.cli.extras import needs
from batchyard.cli.invocation import Invocation
from batchyard.cli.options import spot_options
from batchyard.configuration.values import Refused, bind
from batchyard.logs import configure_logging
from batchyard.settings import Settings
from batchyard.spot_trace import read_spot
from batchyard.store.base import JobStore
from batchyard_scaler.cluster import ClusterScaler
from batchyard_scaler.local import LocalScaler
from batchyard_scaler.spot_emulation import SpotEmulation


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else bind(value)
    except Refused as refused:
        raise click.BadParameter(f'"{value}" is not {refused}') from None


@click.command()
@click.option("--local", is_flag=True, help="Start and drain the consumers too, as processes of this machine.")
@click.option(
    "--grpc-bind",
    metavar="HOST:PORT",
    callback=_address,
    help="Tell KEDA's trigger external-push the decisions here; port 0: any free one.",
)
@spot_options
@click.pass_obj
def scaler(
    invocation: Invocation,
    /,
    *,
    local: bool,
    grpc_bind: str | None,
    spot_trace: Path | None,
    spot_notice: float,
    spot_speed: float,
) -> None:
    """Decide how many consumers each pool should have, so that every deadline is met at the lowest cost.

    Several scalers may run: one decides, and another takes over where it ends. The API tells the decisions to KEDA, and
    so does --grpc-bind, in the clear and to whoever asks. With --local they are carried out here, and SIGTERM drains
    all consumers; without, SIGTERM ends the scaler alone.
    """
    if spot_trace is not None and not local:
        raise click.UsageError("--spot-trace takes consumers away that --local starts: give both")
    settings = invocation.settings()
    spot = None
    if spot_trace is not None:
        spot = SpotEmulation(read_spot(spot_trace), notice_seconds=spot_notice, speed=spot_speed)
    configure_logging(settings.log_level)
    store = invocation.store()

    def command(pool: str) -> Sequence[str]:
        return invocation.child_command("worker", "--pool", pool)

    running = (
        LocalScaler(settings, store=store, command=command, spot=spot)
        if local
        else ClusterScaler(settings, store=store)
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    try:
        with _telling(settings, store, address=grpc_bind) if grpc_bind else nullcontext():
            running.run()
    finally:
        store.close()


def _telling(settings: Settings, store: JobStore, *, address: str) -> AbstractContextManager[int]:
    with needs(feature="--grpc-bind", extra="scaler"):
        from batchyard_scaler.external.server import serving
    return serving(store, pools=[pool.name for pool in settings.pools], bind=address)
