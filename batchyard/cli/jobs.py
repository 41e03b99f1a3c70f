"""`batchyard submit`: one job from the shell."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from batchyard.cli.invocation import Invocation
from batchyard.cli.options import api_options, job_options, options_of


@click.command()
@click.argument("model")
@click.argument("input_text", metavar="INPUT|-")
@click.option("--text", is_flag=True, help="INPUT is a string, even where it reads as JSON.")
@click.option("--wait/--no-wait", default=True, help="Print the result (default), or the job's id at once.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Of the wait; the job goes on after it.")
@click.option("--custom-id", metavar="ID", help="Your own name for the job.")
@job_options
@api_options
@click.pass_obj
def submit(
    invocation: Invocation,
    /,
    *,
    model: str,
    input_text: str,
    text: bool,
    wait: bool,
    timeout: float | None,
    custom_id: str | None,
    url: str | None,
    api_key: str | None,
    **options: Any,
) -> None:
    """Submit one input to MODEL and print its result as JSON.

    INPUT is JSON; what is no JSON is taken as a string. - reads it from standard input.
    """
    given = sys.stdin.read() if input_text == "-" else input_text
    with invocation.client(url=url, api_key=api_key) as client:
        job = client.submit(model, _value(given, text=text), custom_id=custom_id, **options_of(options))
        if not wait:
            click.echo(job.id)
            return
        click.echo(f"job {job.id} ({job.model})", err=True)
        job.wait(timeout)
        sys.stdout.buffer.write(job.result_json() + b"\n")
        sys.stdout.buffer.flush()


def _value(given: str, *, text: bool) -> Any:
    if text:
        return given
    try:
        return msgspec.json.decode(given)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return given
