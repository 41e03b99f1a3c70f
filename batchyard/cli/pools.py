"""`batchyard pools`: what was decided about each pool, and what people fix by hand."""

from __future__ import annotations

import click
import msgspec
from rich.table import Table

from batchyard import schemas
from batchyard.cli.dashboard import cost, decision_text, is_live
from batchyard.cli.figures import output
from batchyard.cli.invocation import Invocation
from batchyard.cli.options import api_options


@click.group()
def pools() -> None:
    """Pools: how many consumers each should have and why, what they cost; fixed or paused by hand."""


@pools.command("list")
@click.option("--json", "as_json", is_flag=True, help="As the API answers.")
@api_options
@click.pass_obj
def list_(invocation: Invocation, /, *, as_json: bool, url: str | None, api_key: str | None) -> None:
    """Show every pool, the last decision about it, and what it cost."""
    with invocation.client(url=url, api_key=api_key) as client:
        found = client.pools()
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    table = Table("pool", "capacity", "live", "min", "max", "this hour", "this month", "decision", box=None)
    for pool in found:
        spent = pool.spent
        table.add_row(
            pool.name,
            pool.capacity,
            str(sum(is_live(consumer) for consumer in pool.consumers)),
            str(pool.min),
            str(pool.max),
            "–" if spent is None else cost(spent.dollars_this_hour, spent.hours_this_hour),
            "–" if spent is None else cost(spent.dollars_this_month, spent.hours_this_month),
            decision_text(pool),
        )
    output().print(table)


@pools.command()
@click.argument("pool")
@click.argument("replicas", type=click.IntRange(min=0))
@api_options
@click.pass_obj
def pin(invocation: Invocation, /, *, pool: str, replicas: int, url: str | None, api_key: str | None) -> None:
    """Fix POOL at so many consumers, whatever there is to do, until it is unpinned."""
    with invocation.client(url=url, api_key=api_key) as client:
        _tell(client.pin_pool(pool, replicas=replicas))


@pools.command()
@click.argument("pool")
@api_options
@click.pass_obj
def unpin(invocation: Invocation, /, *, pool: str, url: str | None, api_key: str | None) -> None:
    """Let the scaler decide about POOL again."""
    with invocation.client(url=url, api_key=api_key) as client:
        _tell(client.unpin_pool(pool))


@pools.command()
@click.argument("pool")
@api_options
@click.pass_obj
def pause(invocation: Invocation, /, *, pool: str, url: str | None, api_key: str | None) -> None:
    """Let POOL's consumers drain, and start none. Jobs are taken as before, and wait."""
    with invocation.client(url=url, api_key=api_key) as client:
        _tell(client.pause_pool(pool))


@pools.command()
@click.argument("pool")
@api_options
@click.pass_obj
def resume(invocation: Invocation, /, *, pool: str, url: str | None, api_key: str | None) -> None:
    """Let POOL have consumers again."""
    with invocation.client(url=url, api_key=api_key) as client:
        _tell(client.resume_pool(pool))


def _tell(pool: schemas.Pool) -> None:
    fixed = "sized by the scaler" if pool.pinned is None else f"fixed at {pool.pinned}"
    click.echo(f"{pool.name} is {'paused, and ' if pool.paused else ''}{fixed}")
