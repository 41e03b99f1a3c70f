"""`batchyard status`: the system at this moment."""

from __future__ import annotations

import click
import msgspec

from batchyard.cli.invocation import Invocation
from batchyard.cli.options import api_options


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As the API answers.")
@api_options
@click.pass_obj
def status(invocation: Invocation, /, *, as_json: bool, url: str | None, api_key: str | None) -> None:
    """Show queues, pools, consumers and what they are doing."""
    with invocation.client(url=url, api_key=api_key) as client:
        found = client.status()
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    from batchyard.cli.dashboard import dashboard
    from batchyard.cli.figures import output

    console = output()
    console.print(dashboard(found, width=console.width))
