"""What keeps a configuration from running in a cluster. Each fault names the setting, and says what to set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from batchyard.configuration import redacted
from batchyard.settings import ModelSettings, PoolSettings, Settings
from batchyard_scaler.render.hardware import gpu_memory_gib, hardware_of, models_of
from batchyard_scaler.render.objects import CONFIG_DIR, STATE_DIR, consumer_name, mounts
from batchyard_scaler.render.presets import PRESETS

LONGEST_NAME = 54
"""Of a Deployment: KEDA's autoscaler is named `keda-hpa-` and this, and a label holds 63 characters."""
LOCAL = {"file", "local"}
"""Protocols of a folder."""

Fault = tuple[str, str]
"""The setting's dotted name, and the whole fault."""


def find_faults(settings: Settings) -> Iterator[Fault]:
    """All of them; see `batchyard.configuration.Check`."""
    yield from _servers(settings)
    yield from _storage(settings)
    yield from _volumes(settings)
    yield from _trigger(settings)
    yield from _names(settings)
    if not settings.models:
        yield _fault("models", "is empty, so there is nothing to run: add a section [models.NAME]")
    for model in settings.models:
        yield from _model(settings, model)
    for pool in settings.pools:
        yield from _device(settings, pool)
        yield from _capacity(settings, pool)
        yield from _fit(settings, pool)


def _fault(name: str, said: str) -> Fault:
    return name, f"{name} {said}"


def _servers(settings: Settings) -> Iterator[Fault]:
    there = f'the pods take the URL itself from the Secret "{settings.kubernetes.secret}", and no manifest holds it'
    database, broker, server = settings.database, settings.broker, settings.server
    if database.url.startswith("sqlite"):
        yield _fault(
            "database.url",
            f'= "{database.url}" is a file on one machine, and pods are on many: set "postgresql+psycopg://HOST/NAME" '
            f"({there})",
        )
    if broker.url == "embedded" or broker.url.startswith("redis+socket:"):
        yield _fault(
            "broker.url",
            f'= "{redacted(broker.url)}" is a broker of one machine, and pods are on many: set "redis://HOST:PORT/0" '
            f'or "amqp://HOST//" ({there})',
        )
    if server.port == 0:
        yield _fault("server.bind", f'= "{server.bind}" leaves the port open, which others need to know: set one')


def _storage(settings: Settings) -> Iterator[Fault]:
    url = settings.storage.url
    protocol, _, path = url.partition("://")
    mounted = [mount for mount in mounts(settings) if PurePosixPath(path).is_relative_to(mount.path)]
    if url == "file" or protocol == "memory":
        yield _fault(
            "storage.url",
            f'= "{url}" is a place within one pod: set the URL of a store that all pods reach, such as '
            '"s3://bucket/folder", or "file:///shared/payloads" with kubernetes.volumes = ["CLAIM:/shared"]',
        )
    elif protocol in LOCAL and not mounted:
        yield _fault(
            "storage.url",
            f'= "{redacted(url)}" is a folder that no volume brings into the pods: mount a claim there, as with '
            f'kubernetes.volumes = ["CLAIM:{path}"]',
        )
    elif protocol in LOCAL and all(mount.read_only for mount in mounted):
        yield _fault("storage.url", f'= "{redacted(url)}" is on a read-only volume: mount its claim without ":ro"')


def _volumes(settings: Settings) -> Iterator[Fault]:
    paths = [PurePosixPath(mount.path) for mount in mounts(settings)]
    for path in dict.fromkeys(paths):
        if paths.count(path) > 1:
            yield _fault("kubernetes.volumes", f"mounts two claims at {path}: give each a path of its own")
        if str(path) in {CONFIG_DIR, STATE_DIR, "/tmp", "/"}:
            yield _fault("kubernetes.volumes", f"mounts a claim at {path}, which is the pods' own: choose another path")


def _trigger(settings: Settings) -> Iterator[Fault]:
    if settings.kubernetes.trigger == "prometheus" and not settings.kubernetes.prometheus_url:
        yield _fault(
            "kubernetes.prometheus_url",
            'is not set, and kubernetes.trigger = "prometheus" needs it: set the address at which KEDA finds '
            'Prometheus, such as "http://prometheus.monitoring.svc:9090"',
        )


def _names(settings: Settings) -> Iterator[Fault]:
    first: dict[str, PoolSettings] = {}
    for pool in settings.pools:
        name = consumer_name(pool)
        if (other := first.setdefault(name, pool)) is not pool:
            yield _fault(
                f"pools.{pool.name}",
                f'and pools.{other.name} overlap: the Deployment of each would be named "{name}"; rename one',
            )
        elif not re.fullmatch(r"[a-z0-9-]*[a-z0-9]", name) or len(name) > LONGEST_NAME:
            yield _fault(
                f"pools.{pool.name}",
                f'would name its Deployment "{name}", which KEDA cannot scale: rename it, so that this has at most '
                f"{LONGEST_NAME} characters and ends in a letter or a digit",
            )


def _model(settings: Settings, model: ModelSettings) -> Iterator[Fault]:
    label = _label(settings, model)
    source = PurePosixPath(model.source)
    folder = settings.config_path.parent if settings.config_path is not None else None
    if folder is not None and folder != folder.parent and source.is_absolute() and source.is_relative_to(folder):
        yield _fault(
            f"{label}.source",
            f'= "{model.source}" is a folder of this machine: put the model into the image or on a volume '
            "(kubernetes.volumes), and name it by its path there",
        )
    p99, longest = model.p99_batch_seconds, model.max_run_seconds
    if p99 is not None and p99 > longest:
        yield _fault(
            f"{label}.p99_batch_seconds",
            f"= {p99:g} contradicts max_run_seconds = {longest:g}, the most that any may run",
        )


def _label(settings: Settings, model: ModelSettings) -> str:
    """The section's name, as far as that can be told."""
    is_alone = [other.name for other in settings.models].count(model.name) == 1
    return f"models.{model.name if is_alone else model.qualified}"


def _device(settings: Settings, pool: PoolSettings) -> Iterator[Fault]:
    hardware = hardware_of(settings, pool)
    name, device = f"pools.{pool.name}.device", f'= "{pool.device}"'
    if pool.device == "mps" or pool.device.startswith("cuda:"):
        yield _fault(name, f'{device}: a pod has one device, and no Mac; set "cuda", "cpu" or "auto"')
    elif pool.device == "cpu" and hardware.resource:
        yield _fault(
            name,
            f'{device} contradicts hardware.{hardware.name}.resource = "{hardware.resource}": set that to "" there',
        )
    elif pool.device == "cuda" and not hardware.resource:
        yield _fault(
            name,
            f'{device} contradicts hardware.{hardware.name}.resource = "": name a GPU there, or another device here',
        )


def _capacity(settings: Settings, pool: PoolSettings) -> Iterator[Fault]:
    preset = PRESETS[settings.kubernetes.preset]
    if pool.capacity == "spot" and preset.capacity_label is None and not hardware_of(settings, pool).node_labels:
        presets = ", ".join(f'"{name}"' for name in PRESETS if name != "none")
        yield _fault(
            "kubernetes.preset",
            f'= "none" does not tell spot nodes from others, and pools.{pool.name} needs spot nodes: set one of '
            f"{presets}, or node_labels of the hardware of that pool",
        )


def _fit(settings: Settings, pool: PoolSettings) -> Iterator[Fault]:
    """Every consumer of a pool loads all its models."""
    hardware = hardware_of(settings, pool)
    called = f'hardware "{hardware.name}"' if hardware.name else "the hardware of a pool that names none"
    for key, has, what in (
        ("memory_gib", hardware.memory_gib, "memory"),
        ("gpu_memory_gib", gpu_memory_gib(hardware), "GPU memory"),
    ):
        if has is None:
            continue
        asked = {_label(settings, model): getattr(model, key) or 0.0 for model in models_of(settings, pool)}
        alone = {label: gib for label, gib in asked.items() if gib > has}
        for label, gib in alone.items():
            yield _fault(
                f"{label}.{key}", f"= {gib:g} is more than pools.{pool.name} has: {has:g} GiB of {what}, {called}"
            )
        if not alone and sum(asked.values()) > has:
            yield _fault(
                f"pools.{pool.name}.models",
                f"ask together for {sum(asked.values()):g} GiB of {what}, and a consumer, which loads them all, has "
                f"{has:g}: {called}",
            )
