"""One value: from what was written to what the setting holds, and whether that is allowed."""

from __future__ import annotations

import ipaddress
import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from batchyard.configuration.faults import listed, nearest
from batchyard.destinations import networks
from batchyard.jobs import Lane
from batchyard.settings import RUNTIMES


class Refused(Exception):
    """The value is not allowed; the message completes "must be …"."""


Rule = Callable[[Any], Any]
"""Returns the value to keep, or raises Refused."""

_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def convert(value: Any, kind: Any, *, is_text: bool) -> Any:
    """Bring a value to a setting's type; text of the environment is read as that type."""
    if kind is Lane:
        return _lane(value)
    if get_origin(kind) is Literal:
        return _one_of(value, get_args(kind))
    if get_origin(kind) in {Union, types.UnionType}:
        kind = next(inner for inner in get_args(kind) if inner is not type(None))
    if kind in _SCALARS:
        return _SCALARS[kind](value, is_text)
    if get_origin(kind) is tuple:
        return _numbers(value, is_text) if get_args(kind)[0] is float else _texts(value, is_text)
    raise TypeError(f"no rule for settings of type {kind}")


def _truth(value: Any, is_text: bool) -> bool:
    if is_text and isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    if not isinstance(value, bool):
        raise Refused("true or false")
    return value


def _whole(value: Any, is_text: bool) -> int:
    if is_text and isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.replace("_", "")):
        return int(value.replace("_", ""))
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused("a whole number")
    return value


def _number(value: Any, is_text: bool) -> float:
    if is_text and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Refused("a number") from None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise Refused("a finite number")
    return float(value)


def _text(value: Any, is_text: bool) -> str:
    if not isinstance(value, str):
        raise Refused("a string")
    return value


_SCALARS: Mapping[Any, Callable[[Any, bool], Any]] = {bool: _truth, int: _whole, float: _number, str: _text}


def _texts(value: Any, is_text: bool) -> tuple[str, ...]:
    if is_text and isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise Refused("a list of strings")
    return tuple(value)


def _numbers(value: Any, is_text: bool) -> tuple[float, ...]:
    if is_text and isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    if not isinstance(value, list | tuple):
        raise Refused("a list of numbers")
    return tuple(_number(item, is_text) for item in value)


def _lane(value: Any) -> Lane:
    if isinstance(value, Lane):
        return value
    return Lane[_one_of(value, [lane.word for lane in Lane]).upper()]


def _one_of(value: Any, allowed: Any) -> str:
    if value not in allowed:
        raise Refused(f"one of {listed(allowed)}{nearest(str(value), allowed)}")
    return str(value)


# --- rules beyond the type ---


def at_least(low: float) -> Rule:
    def rule(value: Any) -> Any:
        if value is not None and value < low:
            raise Refused(f"at least {low:g}")
        return value

    return rule


def above(low: float) -> Rule:
    def rule(value: Any) -> Any:
        if value <= low:
            raise Refused(f"greater than {low:g}")
        return value

    return rule


def between(low: int, high: int) -> Rule:
    def rule(value: Any) -> Any:
        if not low <= value <= high:
            raise Refused(f"from {low:,} to {high:,}")
        return value

    return rule


def matching(pattern: str, allowed: str) -> Rule:
    compiled = re.compile(pattern)

    def rule(value: Any) -> Any:
        if not compiled.fullmatch(value):
            raise Refused(allowed)
        return value

    return rule


def each(pattern: str, allowed: str) -> Rule:
    compiled = re.compile(pattern)

    def rule(values: Any) -> Any:
        if not all(compiled.fullmatch(value) for value in values):
            raise Refused(f"a list of {allowed}")
        return values

    return rule


def delays(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or min(values) <= 0:
        raise Refused("a list of seconds, each greater than 0")
    return values


def network_texts(values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        networks(values)
    except ValueError:
        raise Refused('a list of networks, such as "10.0.0.0/8" or "fd00::/8"') from None
    return values


def bind(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Refused('HOST:PORT, such as "127.0.0.1:8080"')
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise Refused('HOST:PORT; an IPv6 host stands in brackets, such as "[::1]:8080"') from None
    return value


def device(value: str) -> str:
    name = r"\d+|(GPU|MIG)-[\w/-]+"
    if re.fullmatch(rf"auto|cpu|mps|cuda(:({name})(,({name}))*)?", value):
        names = value.partition(":")[2].split(",")
        if len(set(names)) == len(names):
            return value
    raise Refused('"auto", "cpu", "mps", "cuda", or "cuda:" and GPUs by index or UUID, each once, such as "cuda:0,1"')


def database_url(value: str) -> str:
    value = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", value)
    if value == "sqlite" or re.match(r"sqlite:///.+|postgresql\+psycopg://.+", value):
        return value
    raise Refused('"sqlite", "sqlite:///PATH" or "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"')


def broker_url(value: str) -> str:
    value = re.sub(r"^valkey(s?)://", r"redis\1://", value)
    if value == "embedded" or re.match(r"(rediss?|amqps?)://.+|redis\+socket:///.+", value):
        return value
    raise Refused('"embedded", "redis://HOST:PORT/0", "redis+socket:///PATH" or "amqp://USER:PASSWORD@HOST//"')


_URL = r"[a-z][a-z0-9+.-]*://.*"
_SECONDS = above(0)
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_OBJECT = matching(rf"{_LABEL}(\.{_LABEL})*", "a name of Kubernetes: lower-case letters, digits, dashes and dots")
_OBJECTS = each(rf"{_LABEL}(\.{_LABEL})*", "names of Kubernetes: lower-case letters, digits, dashes and dots")
_VALUE = "([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"
_KEY = rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?"

RULES: Mapping[str, Rule] = {
    "server.bind": bind,
    "server.max_body_bytes": at_least(1024),
    "server.max_payload_bytes": at_least(1024),
    "server.max_input_bytes": at_least(64),
    "server.max_inputs": between(1, 100_000),
    "database.url": database_url,
    "broker.url": broker_url,
    "queues.max_queued": at_least(1),
    "queues.window_seconds": between(0, 60),
    "queues.max_failures": between(1, 100),
    "queues.retry_base_seconds": _SECONDS,
    "queues.retry_max_seconds": _SECONDS,
    "queues.lease_seconds": between(1, 3600),
    "queues.max_preemptions": at_least(1),
    "queues.firm_slack_seconds": at_least(0),
    "limits.queued_jobs": at_least(0),
    "limits.stored_bytes": at_least(0),
    "limits.requests_per_second": at_least(0),
    "limits.jobs_per_second": at_least(0),
    "retention.keep_seconds": _SECONDS,
    "retention.keep_bytes": at_least(0),
    "retention.payload_seconds": at_least(60),
    "retention.tombstone_seconds": at_least(0),
    "storage.url": matching(rf"file|{_URL}", '"file" or a URL that fsspec knows, such as "s3://bucket/folder"'),
    "webhooks.allowed_networks": network_texts,
    "webhooks.retry_seconds": delays,
    "webhooks.timeout_seconds": _SECONDS,
    "webhooks.concurrency": between(1, 1024),
    "models.runtime": matching(
        rf"{'|'.join(RUNTIMES)}|[A-Za-z_][\w.]*:[A-Za-z_]\w*",
        f'one of {listed(RUNTIMES)}, or "my_package.my_module:MyModel"',
    ),
    "models.version": matching(NAME.pattern, "letters, digits, dots, dashes and underscores, at most 63"),
    "models.digest": matching(r"(sha256:[0-9a-f]{64})?", '"sha256:" and 64 hexadecimal digits in lower case'),
    "models.weight": at_least(0),
    "models.share": above(0),
    "models.batch_budget": at_least(1),
    "models.max_run_seconds": _SECONDS,
    "models.p99_batch_seconds": _SECONDS,
    "models.memory_gib": above(0),
    "models.gpu_memory_gib": above(0),
    "models.cache_seconds": above(0),
    "pools.memory_gib": above(0),
    "pools.host_memory_gib": at_least(0),
    "hardware.cpus": above(0),
    "hardware.memory_gib": above(0),
    "hardware.resource": matching(
        rf"({_LABEL}(\.{_LABEL})*/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?",
        'an extended resource, such as "nvidia.com/gpu" or "nvidia.com/mig-1g.10gb", or "" for none',
    ),
    "hardware.gpu_memory_gib": above(0),
    "hardware.accelerator": matching(_VALUE, "the value of a node label"),
    "hardware.node_labels": each(rf"{_KEY}={_VALUE}", "labels, each KEY=VALUE"),
    "hardware.taints": each(
        rf"{_KEY}(={_VALUE})?:(NoSchedule|PreferNoSchedule|NoExecute)",
        "taints, each KEY=VALUE:EFFECT or KEY:EFFECT, the effect NoSchedule, PreferNoSchedule or NoExecute",
    ),
    "kubernetes.namespace": matching(_LABEL, "a namespace: at most 63 lower-case letters, digits and dashes"),
    "kubernetes.keda_version": matching(r"2\.\d{1,2}", 'a minor version of KEDA, such as "2.20"'),
    "kubernetes.version": matching(r"1\.\d{2}", 'a minor version of Kubernetes, such as "1.35"'),
    "kubernetes.image": matching(
        r"([^{}\s]|\{version\})*\{role\}([^{}\s]|\{version\})*",
        'an image with "{role}" in it, and "{version}" where wanted, such as "registry.example.com/batchyard-{role}:1"',
    ),
    "kubernetes.prometheus_url": matching(r"(https?://.+)?", "an http or https URL"),
    "kubernetes.secret": _OBJECT,
    "kubernetes.env_secrets": _OBJECTS,
    "kubernetes.volumes": each(rf"{_LABEL}(\.{_LABEL})*:/[^:]+(:ro)?", "volumes, each CLAIM:/PATH or CLAIM:/PATH:ro"),
    "kubernetes.api_replicas": at_least(1),
    "kubernetes.keda_namespace": matching(_LABEL, "a namespace: at most 63 lower-case letters, digits and dashes"),
    "pools.device": device,
    "pools.consumers_per_device": between(1, 64),
    "pools.min": at_least(0),
    "pools.max": at_least(1),
    "pools.idle_seconds": at_least(0),
    "pools.drain_seconds": _SECONDS,
    "pools.metadata_url": matching(r"(https?://.+)?", "an http or https URL"),
    "pools.price_per_hour": at_least(0),
    "pools.speed": above(0),
    "pools.zones": each(r"[A-Za-z0-9][A-Za-z0-9_-]*", "zones, named by letters, digits, dashes and underscores"),
    "budget.per_hour": above(0),
    "budget.per_month": above(0),
}
"""By section and key; the name of the model or pool left out."""
