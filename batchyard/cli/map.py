"""`batchyard map`: a file of inputs through a model, resumable after Ctrl-C or a crash of either side."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import click
import msgspec

from batchyard.cli.invocation import Invocation
from batchyard.cli.map_files import (
    Inputs,
    MapProgress,
    Mark,
    Seen,
    load_progress,
    progress_path,
    read_results,
    save_progress,
    survey,
)
from batchyard.cli.options import api_options, job_options, options_of
from batchyard.sdk.calls import Options, new_key
from batchyard.sdk.reading import Hole, Result

if TYPE_CHECKING:
    from batchyard.client import Client, Results

SAVE_SECONDS = 1.0
"""How often OUT is flushed and OUT.progress replaced."""

SOME_FAILED = 3
"""The exit code where every input has its line, and some lines are errors."""


@click.command("map")
@click.argument("model")
@click.argument(
    "file", metavar="FILE.jsonl|-", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True)
)
@click.option("-o", "--out", required=True, metavar="OUT.jsonl", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--text", is_flag=True, help="Every line of FILE is a string, not JSON.")
@click.option("--ordered", is_flag=True, help="Lines of OUT in the order of FILE, not of completion.")
@click.option("--tensors", type=click.Choice(["numbers", "base64"]), default="numbers", show_default=True)
@click.option("--progress/--no-progress", default=None, help="The bar; default: where standard error is a terminal.")
@job_options
@api_options
@click.pass_obj
def map_(
    invocation: Invocation,
    /,
    *,
    model: str,
    file: Path,
    out: Path,
    text: bool,
    ordered: bool,
    tensors: Literal["numbers", "base64"],
    progress: bool | None,
    url: str | None,
    api_key: str | None,
    **options: Any,
) -> int:
    """Run every line of FILE through MODEL and write a line with its index for each to OUT.

    A line of OUT is {"index": N, "result": ...} or {"index": N, "error": {...}}. Interrupted, the same command goes on
    where it stopped and writes nothing twice; with other inputs it refuses to. Exits with 0, or with 3 where some
    inputs failed.
    """
    with ExitStack() as stack:
        # Not sys.stdin: the interpreter would wait at its end for the thread that reads.
        source = open(0, "rb", closefd=False) if str(file) == "-" else file.open("rb")  # noqa: SIM115
        # What can be read once only is checked while it is fed; nor is it closed, which would wait for more of it.
        can_be_surveyed = str(file) != "-" and source.seekable()
        if can_be_surveyed:
            stack.enter_context(source)
        known, whole = load_progress(out), None
        if can_be_surveyed or (known is not None and known.finished):
            whole = survey(source, name=str(file), text=text)
        state, seen = _find_state(known, model, out, whole=whole)
        if state.finished:
            click.echo(f"{out} is complete: {seen.count:,} lines, {seen.failed:,} of them errors", err=True)
            return SOME_FAILED if seen.failed else 0
        total = None
        if can_be_surveyed:
            total = state.mark.inputs
            source.seek(0)
        if seen.count:
            click.echo(f"going on: {out} has {seen.count:,} of {_of(total)} results", err=True)
        inputs = Inputs(source, name=str(file), text=text, expected=state.mark)
        run = MapRun(out=out, state=state, seen=seen, inputs=inputs, tensors=tensors, total=total)
        client = stack.enter_context(invocation.client(url=url, api_key=api_key))
        shows_bar = sys.stderr.isatty() if progress is None else progress
        return run.run(client, ordered=ordered, shows_bar=shows_bar, options=options_of(options))


def _find_state(known: MapProgress | None, model: str, out: Path, *, whole: Mark | None) -> tuple[MapProgress, Seen]:
    """Where an earlier run of the same command stopped, or a fresh start; `whole` names all inputs where it can."""
    if known is None:
        if out.exists() and out.stat().st_size:
            raise click.ClickException(f"{out} exists, and not from an interrupted run: delete it or name another OUT")
        state = MapProgress(model=model, key=f"map-{new_key()}", mark=whole or Mark(inputs=0, digest=""))
        out.touch()
        save_progress(out, state)
        return state, Seen()
    if known.model != model or whole not in {None, known.mark}:
        raise click.ClickException(
            f"{progress_path(out)} belongs to a run of other inputs or of another model ({known.model}): "
            "delete it and OUT to start anew, or name another OUT"
        )
    if not out.exists():
        # Everything is read again from the first result on; nothing is submitted twice.
        out.touch()
        known.cursor, known.finished = 0, False
    return known, read_results(out)


@dataclass(kw_only=True)
class MapRun:
    """One run of the command: owns OUT while it lasts."""

    out: Path
    state: MapProgress
    seen: Seen
    inputs: Inputs
    tensors: Literal["numbers", "base64"]
    total: int | None

    def run(self, client: Client, *, ordered: bool, shows_bar: bool, options: Options) -> int:
        started, before = time.monotonic(), self.seen.count
        results = client.map(
            self.state.model,
            self.inputs,
            key=self.state.key,
            # In order, results that are held back are not in OUT yet: begin again and skip what is.
            after=0 if ordered else self.state.cursor,
            ordered=ordered,
            errors="yield",
            **options,
        )
        with results, self.out.open("ab") as file:
            self._check_bulk(results)
            bar = self._bar(shows_bar)
            try:
                self._write(client, results, file, bar, saves_cursor=not ordered)
            finally:
                if bar is not None:
                    bar.close()
        seconds = max(time.monotonic() - started, 1e-3)
        done = self.seen.count - before
        click.echo(
            f"{done:,} results in {seconds:,.1f} s ({done / seconds:,.0f}/s); "
            f"{self.out} has {self.seen.count:,} lines, {self.seen.failed:,} of them errors",
            err=True,
        )
        return SOME_FAILED if self.seen.failed else 0

    def _check_bulk(self, results: Results) -> None:
        """A cursor means nothing in another bulk: the server's memory of this run may be gone."""
        if self.state.bulk_id not in {None, results.bulk_id}:
            raise click.ClickException(
                f"the server no longer knows the run of {progress_path(self.out)}: delete it and {self.out}"
            )
        self.state.bulk_id = results.bulk_id

    def _bar(self, shows_bar: bool) -> Any:
        if not shows_bar:
            return None
        from batchyard.sdk.progress import Bar

        return Bar(self.state.model, total=self.total, done=self.seen.count)

    def _write(self, client: Client, results: Results, file: IO[bytes], bar: Any, *, saves_cursor: bool) -> None:
        saved_at = time.monotonic()
        cursor = self.state.cursor
        try:
            for batch in results.batches():
                self._put([result for result in batch if self.seen.add(result.index)], file, bar)
                cursor = results.cursor
                if time.monotonic() - saved_at > SAVE_SECONDS:
                    self._save(file, cursor if saves_cursor else 0)
                    saved_at = time.monotonic()
            self._put_holes(client.bulk(id=results.bulk_id).jobs, file, bar)
            self.state.finished = True
        except KeyboardInterrupt:
            click.echo("\ninterrupted; the same command goes on from here", err=True)
            raise
        finally:
            self._save(file, cursor if saves_cursor else 0)

    def _put(self, fresh: Sequence[Result], file: IO[bytes], bar: Any) -> None:
        failed = sum(not result.ok for result in fresh)
        file.write(b"".join(line_of(result, tensors=self.tensors) for result in fresh))
        self.seen.failed += failed
        if bar is not None:
            bar.add(len(fresh), failed)

    def _put_holes(self, jobs: int, file: IO[bytes], bar: Any) -> None:
        """In order of completion nobody misses what is no longer kept; its lines say so all the same."""
        if self.seen.count < jobs:
            for index in self.seen.missing(jobs):
                self.seen.add(index)
                self._put([Hole(index)], file, bar)

    def _save(self, file: IO[bytes], cursor: int) -> None:
        file.flush()
        os.fsync(file.fileno())
        self.state.cursor = cursor
        mark = self.inputs.mark()
        if mark.inputs > self.state.mark.inputs:
            self.state.mark = mark
        save_progress(self.out, self.state)


_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def line_of(result: Result, *, tensors: Literal["numbers", "base64"]) -> bytes:
    """One line of OUT."""
    if (error := result.error) is not None:
        told = {"code": error.code, "message": error.details.get("reason", error.message)}
        return b'{"index":%d,"error":%b}\n' % (result.index, _encode(told))
    return b'{"index":%d,"result":%b}\n' % (result.index, result.json(tensors=tensors))


def _of(total: int | None) -> str:
    return "the" if total is None else f"{total:,}"
