"""`batchyard simulate`: what sizing the pools would have cost on a trace, by ours and by others."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from batchyard.cli.invocation import Invocation
from batchyard_scaler.simulator.comparing import Comparison, compare
from batchyard_scaler.simulator.engine import Moment
from batchyard_scaler.simulator.flags import assumptions_of, configured_pools, pools_of, spot_of, trace_of
from batchyard_scaler.simulator.peers import CONTENDERS, Contender, contender
from batchyard_scaler.simulator.reading import COLUMNS
from batchyard_scaler.simulator.report import as_json, markdown
from batchyard_scaler.simulator.service import World

DEFAULT_POLICIES = ("batchyard", "keda:1", "keda:5", "keda:30", "backlog:10", "ray:2")
ABOVE_0 = click.FloatRange(min=0, min_open=True)


def _contenders(context: click.Context, parameter: click.Parameter, names: Sequence[str]) -> list[Contender]:
    try:
        return [contender(name) for name in dict.fromkeys(names or DEFAULT_POLICIES)]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _columns(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    found = dict(text.partition("=")[::2] for text in given)
    if any(key not in COLUMNS or not heading for key, heading in found.items()):
        raise click.BadParameter(f"{', '.join(given)}: allowed is NAME=HEADING, with a NAME of {', '.join(COLUMNS)}")
    return found


@click.command()
@click.argument("trace", metavar="TRACE")
@click.option(
    "--policy",
    "contenders",
    multiple=True,
    callback=_contenders,
    metavar="NAME",
    help=f"How pools are sized; again for several. Of {CONTENDERS}. Default: {', '.join(DEFAULT_POLICIES)}.",
)
@click.option("--pools", "configured", is_flag=True, help="The pools of batchyard.toml, by name, price, min and max.")
@click.option("--apart", is_flag=True, help="A pool for each model, in place of one pool for all of them.")
@click.option("--cold-start", type=ABOVE_0, default=300.0, show_default=True, help="Seconds from start to first job.")
@click.option(
    "--cold-start-p50", type=ABOVE_0, help="Their median: starts are then drawn, and --cold-start is their p90."
)
@click.option(
    "--notice", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds before a spot node goes."
)
@click.option("--swap", type=click.FloatRange(min=0), default=0.0, help="Seconds that another model takes to load.")
@click.option("--price", type=ABOVE_0, default=1.0, show_default=True, help="Dollars an hour, on demand.")
@click.option("--spot-price", type=ABOVE_0, default=0.35, show_default=True, help="Dollars an hour, spot.")
@click.option("--max", "maximum", type=click.IntRange(min=1), default=200, show_default=True, help="Replicas a pool.")
@click.option(
    "--spot",
    "zones",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A zone's spot capacity as CSV; again for several zones. Adds a spot pool.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    callback=_columns,
    metavar="NAME=HEADING",
    help=f"What the trace calls a column that is not found; NAME is one of {', '.join(COLUMNS)}.",
)
@click.option("--model", help="Of a trace of rates: the model to replay; default: its first.")
@click.option("--demand", type=ABOVE_0, help="Scale rates, or the jobs' work, to keep so many replicas busy.")
@click.option("--job-seconds", type=ABOVE_0, help="Work of a job where the trace says none; default: 30.")
@click.option(
    "--deadline",
    "deadlines",
    multiple=True,
    type=ABOVE_0,
    metavar="SECONDS",
    help="Where the trace says none; several are given to equal shares of the jobs. Default: 900 and 14400.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is drawn.")
@click.option("--bound/--no-bound", "with_bound", default=True, help="Solve for the least that any fleet could cost.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write report.md, report.json, costs.png and, without --apart, replicas.png to this folder.",
)
@click.pass_obj
def simulate(
    invocation: Invocation,
    /,
    *,
    trace: str,
    contenders: list[Contender],
    configured: bool,
    apart: bool,
    cold_start: float,
    cold_start_p50: float | None,
    notice: float,
    swap: float,
    price: float,
    spot_price: float,
    maximum: int,
    zones: Sequence[Path],
    columns: Mapping[str, str],
    model: str | None,
    demand: float | None,
    job_seconds: float | None,
    deadlines: Sequence[float],
    seed: int,
    with_bound: bool,
    out: Path | None,
) -> None:
    """Replay TRACE against this scaler and others, and compare what they cost and how much was on time.

    TRACE is a CSV file, plain or gzipped, or one of diurnal, bursts, bulk and sparse, which are made from the seed. A
    file has one of two headings:

    \b
      arrive_seconds[,work_seconds][,deadline_seconds][,model][,tolerant]
      model,t_seconds,requests_per_second             in equal steps

    Columns may have any order and the usual other names (timestamp, duration_ms); others are told by --column. Times
    of arrival are numbers, Unix times, or dates and times. A deadline counts from the arrival.

    A spot file has rows of time_ms,add|remove,node or date,time,running or seconds,running.

    \b
    Examples:
      batchyard simulate diurnal --policy batchyard --policy keda:5 --out report
      batchyard simulate requests.csv --demand 20 --deadline 900 --cold-start 60
      batchyard simulate rates.csv.gz --model m-large --demand 20 --spot zone-a.csv --spot zone-b.csv
    """
    if cold_start_p50 is not None and cold_start_p50 > cold_start:
        raise click.UsageError(f"--cold-start-p50 is {cold_start_p50:g}, above --cold-start, {cold_start:g}.")
    jobs = trace_of(
        trace,
        columns=columns,
        model=model,
        demand=demand,
        job_seconds=job_seconds,
        deadlines=deadlines or None,
        seed=seed,
    )
    spot = spot_of(zones)
    if configured:
        pools = configured_pools(invocation.settings().pools, jobs, cold_start=cold_start, swap=swap, zones=list(spot))
    else:
        pools = pools_of(
            jobs,
            apart=apart,
            cold_start=cold_start,
            swap=swap,
            price=price,
            spot_price=spot_price,
            maximum=maximum,
            zones=list(spot),
        )
    assumptions = assumptions_of(jobs, pools, seed=seed)
    moments: dict[str, Sequence[Moment]] = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        tasks = {each.name: progress.add_task(each.name, total=1.0) for each in contenders}
        found = compare(
            jobs,
            pools=pools,
            contenders=contenders,
            spot=spot,
            world=World(seed=seed, notice_seconds=notice, cold_start_p50_seconds=cold_start_p50),
            assumptions=assumptions,
            with_bound=with_bound and not apart and len(jobs.models) == 1,
            step_seconds=min(300.0, max(10.0, jobs.seconds / 200)),
            on_progress=lambda name, share: progress.update(tasks[name], completed=share),
            on_moments=moments.__setitem__ if out else None,
        )
    click.echo(markdown(found), nl=False)
    if out:
        _write(out, found, moments)
        click.echo(f"\nWritten to {out}.", err=True)


def _write(out: Path, found: Comparison, moments: dict[str, Sequence[Moment]]) -> None:
    from batchyard_scaler.simulator.plots import plot_costs, plot_replicas

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(markdown(found), encoding="utf-8")
    (out / "report.json").write_bytes(as_json(found))
    plot_costs(out / "costs.png", found)
    if moments:
        plot_replicas(out / "replicas.png", moments)
