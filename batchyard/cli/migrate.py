"""`batchyard migrate`: the database's schema."""

from __future__ import annotations

import click

from batchyard.cli.extras import needs
from batchyard.cli.invocation import Invocation
from batchyard.configuration import redacted
from batchyard.settings import Settings


@click.command()
@click.option(
    "--restored",
    is_flag=True,
    help="The database was put back from a backup: nothing that was claimed before may be written any more.",
)
@click.pass_obj
def migrate(invocation: Invocation, /, *, restored: bool) -> None:
    """Create the database's tables, or bring them to this version. Safe to repeat."""
    settings = invocation.settings()
    click.echo(f"the database {migrate_database(settings)} is up to date")
    if restored:
        disown(settings)
        click.echo("what consumers held when it was saved is queued again")


def disown(settings: Settings) -> None:
    """See `JobStore.disown`."""
    from batchyard.store.open import open_store

    store = open_store(settings.database.url, state_dir=settings.state_dir)
    try:
        store.disown()
    finally:
        store.close()


def migrate_database(settings: Settings) -> str:
    """Bring the configured database to the newest schema; returns its URL, without secrets."""
    with needs(feature="a database", extra="producer"):
        from batchyard.store import migrate as migrations
        from batchyard.store.open import database_url
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    url = database_url(settings.database.url, state_dir=settings.state_dir)
    migrations.upgrade(url)
    return redacted(url)
