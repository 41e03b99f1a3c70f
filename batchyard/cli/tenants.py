"""`batchyard tenants`: those who share the system. Works on the database, so it needs no API and no key."""

from __future__ import annotations

import click
from rich.table import Table

from batchyard.cli.figures import output
from batchyard.cli.invocation import Invocation


@click.group()
def tenants() -> None:
    """Those who share the system: each sees its own jobs alone."""


@tenants.command("create")
@click.argument("name")
@click.option(
    "--weight",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    default=1.0,
    show_default=True,
    help="Its share of a contended queue, beside the others'.",
)
@click.pass_obj
def create(invocation: Invocation, /, *, name: str, weight: float) -> None:
    """Create a tenant."""
    tenant = invocation.store().create_tenant(name, weight=weight)
    click.echo(f"created tenant {tenant.name}; give it a key with: batchyard keys create --tenant {tenant.name}")


@tenants.command("list")
@click.pass_obj
def list_(invocation: Invocation, /) -> None:
    """List the tenants."""
    table = Table("tenant", "weight", box=None)
    for tenant in invocation.store().tenants():
        table.add_row(tenant.name, f"{tenant.weight:g}")
    output().print(table)
