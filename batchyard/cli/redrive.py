"""`batchyard redrive`: jobs that ended without a result, submitted once more."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

import click
import msgspec
from rich.table import Table
from rich.text import Text

from batchyard import schemas
from batchyard.cli.figures import count, output
from batchyard.cli.invocation import Invocation
from batchyard.cli.options import api_options
from batchyard.sdk.calls import Which


class Moment(click.ParamType[datetime]):
    """A time; without an offset, this machine's."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except ValueError:
            self.fail(f'"{value}" is no time: give it as 2030-01-31T17:00', param, ctx)


@click.command()
@click.argument("ids", nargs=-1, metavar="[JOB]...")
@click.option("--to", metavar="MODEL@VERSION", help="Another version, or a bare name; default: each job's own.")
@click.option(
    "--ended", type=click.Choice(get_args(schemas.DeadWord)), help="Only jobs that ended so; default: failed."
)
@click.option("--model", metavar="NAME", help="Only jobs of this model, or of MODEL@VERSION.")
@click.option("--error", metavar="CODE", help="Only jobs whose error has this code: crash_loop, timeout, …")
@click.option("--label", metavar="LABEL", help="Only jobs with this label.")
@click.option("--finished-from", type=Moment(), metavar="TIME", help="Only jobs that ended then or later.")
@click.option("--finished-before", type=Moment(), metavar="TIME", help="Only jobs that ended earlier.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="As the API answers.")
@api_options
@click.pass_obj
def redrive(
    invocation: Invocation,
    /,
    *,
    ids: tuple[str, ...],
    to: str | None,
    ended: schemas.DeadWord | None,
    model: str | None,
    error: str | None,
    label: str | None,
    finished_from: datetime | None,
    finished_before: datetime | None,
    dry_run: bool,
    as_json: bool,
    url: str | None,
    api_key: str | None,
) -> None:
    """Submit jobs that ended without a result once more, as new jobs: the JOBs, or all that the options name.

    A job is redriven once, so an interrupted command may be given again. Exits with 1 where a job was refused.
    """
    which = Which(
        state=ended, model=model, error=error, label=label, finished_from=finished_from, finished_before=finished_before
    )
    if bool(ids) == any(value is not None for value in which.values()):
        raise click.UsageError("say which jobs: either their ids, or at least one of the options that choose them")
    with invocation.client(url=url, api_key=api_key) as client:
        done = client.redrive(ids or None, to=to, dry_run=dry_run, **which)
    if as_json:
        click.echo(msgspec.json.encode(done))
    else:
        _show(done, dry_run=dry_run)
    if any(job.refused for job in done):
        raise click.exceptions.Exit(1)


def _show(done: list[schemas.Redriven], *, dry_run: bool) -> None:
    table = Table("job", "died of", "redriven as", "model", "", box=None)
    for job in done:
        note = job.refused.message if job.refused is not None else "redriven before" if job.already else ""
        died_of = "–" if job.died_of is None else f"{job.died_of.code}: {job.died_of.message}"
        # Messages are the model's own words, and no markup.
        table.add_row(job.id, Text(died_of), job.redriven_as or "–", job.model or "–", Text(note))
    if done:
        output().print(table)
    made = sum(not (job.already or job.refused) for job in done)
    before, refused = sum(job.already for job in done), sum(job.refused is not None for job in done)
    verb = "would be redriven" if dry_run else "redriven"
    click.echo(f"{count(made)} {verb}, {count(before)} redriven before, {count(refused)} refused", err=True)
