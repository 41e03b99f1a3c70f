"""`batchyard tenants`: those who share the system. Works on the database, so it needs no API and no key."""

from __future__ import annotations

import click
from rich.table import Table

from batchyard.cli.figures import output
from batchyard.cli.invocation import Invocation
from batchyard.limits import NAMES, resolve
from batchyard.store.base import TenantLimits


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
    defaults = invocation.settings().limits
    table = Table("tenant", "weight", *NAMES, box=None)
    for tenant in invocation.store().tenants():
        limits = resolve(tenant, defaults)
        table.add_row(tenant.name, f"{tenant.weight:g}", *(_shown(getattr(limits, name)) for name in NAMES))
    output().print(table)


LIMIT = click.FloatRange(min=0)
COUNT = click.IntRange(min=0, max=2**62)


@tenants.command("limit")
@click.argument("name")
@click.option("--queued-jobs", type=COUNT, help="Jobs that may wait, over all queues.")
@click.option("--stored-bytes", type=COUNT, help="Inputs, results and payloads that may be kept.")
@click.option("--requests-per-second", type=LIMIT, help="Calls of any kind, at each API process.")
@click.option("--jobs-per-second", type=LIMIT, help="Jobs submitted, at each API process.")
@click.pass_obj
def limit(invocation: Invocation, /, *, name: str, **limits: float | None) -> None:
    """Set what a tenant may use; 0 is no limit.

    All four are replaced: one that is not given is as `[limits]` of the configuration says for everybody.
    """
    tenant = invocation.store().set_tenant_limits(name, TenantLimits(**limits))  # type: ignore[arg-type]
    found = resolve(tenant, invocation.settings().limits)
    click.echo(f"{tenant.name}: " + ", ".join(f"{each} {_shown(getattr(found, each))}" for each in NAMES))


def _shown(limit: float) -> str:
    return f"{limit:,.10g}" if limit else "no limit"
