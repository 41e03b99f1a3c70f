"""The commands `batchyard worker` and `batchyard check`."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import click

from batchyard.devices import Place, devices_for
from batchyard.errors import BatchyardError, ConfigurationError, Conflict, Unavailable
from batchyard.model import Model
from batchyard.settings import ModelSettings, PoolSettings, Settings
from batchyard.store.base import JobStore, ModelVersion


@click.command()
@click.option("--pool", "pool_name", required=True, metavar="NAME", help="The pool to serve, as in batchyard.toml.")
@click.option(
    "--device", metavar="DEVICE", help='Be one consumer, on this torch device or on the one that "auto" finds.'
)
@click.pass_obj
def worker(invocation: Any, pool_name: str, device: str | None) -> int:
    """Run the consumers of a pool on this machine: one process on each of the pool's devices, or one on the CPU.

    Where there are several, each sees its own device alone, and one that dies is started again.

    SIGTERM or Ctrl-C drains it: what has not started goes back to its queue, a running batch is finished where it fits
    the pool's drain_seconds, and the command exits with 0. A second signal waits for nothing.
    """
    from batchyard.broker.embedded import resolve_broker_url
    from batchyard.store.open import open_store
    from batchyard.telemetry import configure_logging
    from batchyard_consumers.catalog import find_pool, models_of

    settings: Settings = invocation.settings()
    pool = find_pool(settings, pool_name)
    configure_logging(settings.log_level)
    if not models_of(settings, pool):
        raise click.UsageError(f"the pool {pool_name!r} names no configured model")
    if device is None:
        places = _places(pool)
        if len(places) > 1:
            from batchyard_consumers.siblings import Siblings

            command = invocation.child_command("worker", "--pool", pool_name)
            return Siblings(settings, pool, places=places, command=command).run()
        # Read when CUDA is first used, which is after this.
        os.environ.update(places[0].variables)
        device = places[0].torch_device or pool.device
    pool = replace(pool, device=device)
    # Celery's worker imports the signal and thread set-up that must stand before anything else runs.
    from batchyard_consumers.worker import run_worker

    store = open_store(settings.database.url, state_dir=settings.state_dir)
    run_worker(settings, pool, store=store, url=resolve_broker_url(settings))
    return 0


def _places(pool: PoolSettings) -> list[Place]:
    """On this machine, at least one; ConfigurationError where it has no such device."""
    devices = devices_for([pool])
    first = devices.take(pool)
    if first is None:
        raise ConfigurationError(
            [f'pools.{pool.name}.device is "{pool.device}", and this machine has no such GPU: see nvidia-smi -L']
        )
    return [first, *(place for _ in range(devices.free(pool) or 0) if (place := devices.take(pool)) is not None)]


@click.command()
@click.option("--model", "names", multiple=True, metavar="NAME", help="Only these; a name or name@version.")
@click.option("--device", default="auto", show_default=True, help='A torch device, or "auto".')
@click.pass_obj
def check(invocation: Any, names: tuple[str, ...], device: str) -> None:
    """Load and warm every configured model, and say what it takes.

    Publishes each version's input schema to the database where there is one, and why it cannot be loaded where no
    consumer has loaded it or tries to. Exits with 1 where a model cannot serve.
    """
    settings: Settings = invocation.settings()
    wanted = [model for model in settings.models if not names or {model.name, model.qualified} & set(names)]
    if not wanted:
        known = ", ".join(model.qualified for model in settings.models) or "none"
        raise click.UsageError(f"no configured model is named {', '.join(names) or 'at all'}; there are: {known}")
    versions = _versions(settings)
    failed = [model for model in wanted if not _check(model, device=device, versions=versions)]
    if failed:
        raise click.exceptions.Exit(1)


Versions = tuple[JobStore, dict[str, ModelVersion]] | None


def _versions(settings: Settings) -> Versions:
    """The store and the versions in it; None where there is no database yet."""
    from batchyard.store.open import open_store
    from batchyard_consumers.catalog import config_of

    try:
        store = open_store(settings.database.url, state_dir=settings.state_dir)
        known = store.sync_models([config_of(model) for model in settings.models])
    except (Unavailable, Conflict) as away:
        click.echo(f"nothing is published: {away.message}", err=True)
        return None
    return store, {version.name: version for version in known}


def _check(model: ModelSettings, *, device: str, versions: Versions) -> bool:
    from batchyard_consumers.device import choose_device
    from batchyard_consumers.loading import load
    from batchyard_consumers.served import Served
    from batchyard_consumers.speed import Speed

    chosen = choose_device(device)
    version = versions[1].get(model.qualified) if versions is not None else None
    served = Served(
        version_id=0 if version is None else version.id,
        settings=model,
        queue_ids={} if version is None else version.queue_ids,
        speed=Speed(configured_budget=model.batch_budget),
    )

    def report(loaded: Model, digest: str, load_seconds: float) -> None:
        if versions is not None and version is not None:
            versions[0].report_version(
                version.id,
                digest=digest,
                input_schema=loaded.input_schema,
                cost_unit=loaded.cost_unit,
                load_seconds=load_seconds,
            )

    started = time.perf_counter()
    try:
        load(served, device=chosen, report=report)
    except BatchyardError as error:
        click.echo(f"{model.qualified}: FAILED: {error.message}")
        if versions is not None and version is not None and _is_unknown(versions[0], version.id):
            versions[0].report_load_error(version.id, message=error.message)
        return False
    click.echo(f"{model.qualified}: ok on {chosen}, {_described(served)}, {time.perf_counter() - started:.1f} s in all")
    return True


def _is_unknown(store: JobStore, version_id: int) -> bool:
    """Whether nobody has loaded the version and nobody is about to: this machine's word about it is the only one."""
    [version] = [version for version in store.models() if version.id == version_id]
    queue_ids = set(version.queue_ids.values())
    live = [info for info in store.consumers() if info.state in {"starting", "ready", "draining"}]
    return version.digest is None and not any(queue_ids & set(info.queue_ids) for info in live)


def _described(served: Any) -> str:
    unit = served.model.cost_unit
    words = [f"loaded in {served.load_seconds:.2f} s", f"computes in {served.dtype}"]
    speed, memory = served.speed, served.footprint
    if predicted := memory.at(speed.budget):
        words.append(f"weights of {memory.weights / 2**20:,.1f} MiB")
        words.append(
            f"memory of {predicted / 2**20:,.1f} MiB predicted and {memory.measured / 2**20:,.1f} MiB measured "
            f"({memory.measured / predicted:.2f} times as much)"
        )
    if speed.batches:
        fit = speed.line.fit()
        words.append(f"budget {speed.budget} {unit} a batch")
        if fit is not None:
            words.append(f"a batch takes {fit[0] * 1e6:.2f} µs a unit + {fit[1] * 1e3:.2f} ms")
        if speed.seconds_per_unit:
            words.append(f"about {1 / speed.seconds_per_unit:,.0f} {unit}/s")
        if speed.seconds_per_job:
            words.append(f"{1 / speed.seconds_per_job:,.0f} jobs/s of {speed.mean_cost:.0f} {unit}")
    else:
        words.append("speed and budget are learned from its first batches")
    return ", ".join(words)
