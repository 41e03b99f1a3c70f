"""`batchyard models`, `pause` and `resume`."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from batchyard import schemas
from batchyard.cli.figures import count, output, seconds
from batchyard.cli.invocation import Invocation
from batchyard.cli.options import api_options
from batchyard.jobs import Lane


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As the API answers.")
@api_options
@click.pass_obj
def models(invocation: Invocation, /, *, as_json: bool, url: str | None, api_key: str | None) -> None:
    """Every model and version: backlog, speed, and whether it is loaded."""
    with invocation.client(url=url, api_key=api_key) as client:
        found = client.models()
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found))
        return
    table = Table("model", "lane", "queued", "running", "waiting", "consumers", "drains in", "state", box=None)
    for model in found:
        for version in model.versions:
            state = state_of(version)
            for queue in version.queues:
                table.add_row(
                    version.name,
                    queue.lane,
                    count(queue.queued),
                    count(queue.running),
                    count(queue.waiting),
                    str(queue.consumers),
                    seconds(queue.eta_seconds),
                    Text("paused") if queue.paused else state,
                )
    output().print(table)


def state_of(version: schemas.ModelVersion) -> Text:
    """What serves now counts before what failed once."""
    if version.warm:
        return Text("warm")
    if version.load_error:
        return Text(f"cannot load: {version.load_error}", style="red")
    return Text("cold" if version.active else "no longer configured")


LANES = click.Choice([lane.word for lane in Lane])


@click.command()
@click.argument("model")
@click.option("--lane", type=LANES, help="Default: both.")
@api_options
@click.pass_obj
def pause(
    invocation: Invocation, /, *, model: str, lane: schemas.LaneWord | None, url: str | None, api_key: str | None
) -> None:
    """Hold back MODEL's queued jobs (or one version's, as MODEL@VERSION). What runs goes on; submissions are taken."""
    with invocation.client(url=url, api_key=api_key) as client:
        _tell("paused", client.pause(model, lane=lane), lane)


@click.command()
@click.argument("model")
@click.option("--lane", type=LANES, help="Default: both.")
@api_options
@click.pass_obj
def resume(
    invocation: Invocation, /, *, model: str, lane: schemas.LaneWord | None, url: str | None, api_key: str | None
) -> None:
    """Let MODEL's queued jobs run again."""
    with invocation.client(url=url, api_key=api_key) as client:
        _tell("resumed", client.resume(model, lane=lane), lane)


def _tell(what: str, model: schemas.Model, lane: str | None) -> None:
    for version in model.versions:
        click.echo(f"{what} {version.name} ({lane or ' and '.join(each.word for each in Lane)})")
