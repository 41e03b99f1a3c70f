"""`batchyard keys`: API keys. Works on the database, so the first key needs no API."""

from __future__ import annotations

import time

import click
from rich.table import Table

from batchyard.cli.figures import output
from batchyard.cli.invocation import Invocation
from batchyard.errors import NotFound
from batchyard.keys import SCOPES, mint
from batchyard.schemas import rfc3339
from batchyard.store.base import ApiKey, JobStore, Tenant

DAY_MS = 24 * 3600 * 1000


@click.group()
def keys() -> None:
    """API keys: needed wherever the API is not on loopback."""


@keys.command("create")
@click.option("--tenant", default="default", show_default=True, metavar="NAME")
@click.option("--name", default="", metavar="TEXT", help="For people: who or what will use it.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="May be given often; default: jobs.")
@click.option("--expires-in-days", type=click.FloatRange(min=0, min_open=True), help="Never, where not given.")
@click.pass_obj
def create(
    invocation: Invocation, /, *, tenant: str, name: str, scopes: tuple[str, ...], expires_in_days: float | None
) -> None:
    """Create a key and print it, this once: only its hash is kept."""
    store = invocation.store()
    key = mint()
    expires_at_ms = None if expires_in_days is None else store.now_ms() + round(expires_in_days * DAY_MS)
    store.create_key(
        prefix=key.prefix,
        tenant_id=tenant_named(store, tenant).id,
        name=name,
        digest=key.digest,
        scopes=scopes or ("jobs",),
        expires_at_ms=expires_at_ms,
    )
    click.echo(f"a key of tenant {tenant} for {', '.join(scopes or ('jobs',))}; it is not shown again:", err=True)
    click.echo(key.text)


@keys.command("rotate")
@click.argument("prefix")
@click.option("--overlap-hours", type=click.FloatRange(min=0, max=720), default=24.0, show_default=True)
@click.option("--expires-in-days", type=click.FloatRange(min=0, min_open=True), help="Default: as the old one did.")
@click.pass_obj
def rotate(invocation: Invocation, /, *, prefix: str, overlap_hours: float, expires_in_days: float | None) -> None:
    """Create the key that takes the place of PREFIX, and print it, this once.

    It has the same tenant, name and scopes. The old one stays valid for the overlap, for its users to change.
    """
    key = mint()
    made = invocation.store().rotate_key(
        prefix,
        successor=key.prefix,
        digest=key.digest,
        overlap_ms=round(overlap_hours * DAY_MS / 24),
        life_ms=None if expires_in_days is None else round(expires_in_days * DAY_MS),
    )
    click.echo(f"a key of tenant {made.tenant} for {', '.join(made.scopes)}; it is not shown again:", err=True)
    click.echo(key.text)


def tenant_named(store: JobStore, name: str) -> Tenant:
    known = {tenant.name: tenant for tenant in store.tenants()}
    if name not in known:
        raise NotFound(f'there is no tenant "{name}"; there are {", ".join(sorted(known))}', allowed=sorted(known))
    return known[name]


@keys.command("list")
@click.pass_obj
def list_(invocation: Invocation, /) -> None:
    """List the keys, by their public prefix."""
    table = Table("prefix", "tenant", "name", "scopes", "created", "state", box=None)
    now_ms = time.time_ns() // 1_000_000
    known = invocation.store().keys()
    for key in known:
        state = _state(key, now_ms)
        table.add_row(key.prefix, key.tenant, key.name, " ".join(key.scopes), rfc3339(key.created_at_ms), state)
    output().print(table)


def _state(key: ApiKey, now_ms: int) -> str:
    if key.revoked_at_ms is not None:
        return f"revoked {rfc3339(key.revoked_at_ms)}"
    replaced = "" if key.replaced_by is None else f", replaced by {key.replaced_by}"
    if key.expires_at_ms is None:
        return f"valid{replaced}"
    return f"{'expired' if key.expires_at_ms <= now_ms else 'valid until'} {rfc3339(key.expires_at_ms)}{replaced}"


@keys.command("revoke")
@click.argument("prefix")
@click.pass_obj
def revoke(invocation: Invocation, /, *, prefix: str) -> None:
    """Revoke a key, by its prefix. API processes hear of it within seconds."""
    key = invocation.store().revoke_key(prefix)
    click.echo(f"revoked {key.prefix} of tenant {key.tenant}")
