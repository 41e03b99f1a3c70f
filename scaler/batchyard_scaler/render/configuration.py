"""The configuration that the pods read: the one at hand as TOML, without secrets, with what a cluster changes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from batchyard.configuration import redacted
from batchyard.configuration.sources import SECTIONS
from batchyard.jobs import Lane
from batchyard.settings import ScheduleSettings, Settings, StorageSettings
from batchyard_scaler.render.hardware import drain_seconds
from batchyard_scaler.render.presets import PRESETS

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ELSEWHERE = {"database", "broker", "kubernetes"}
"""Sections that a pod has from the Secret, or has no use for."""
_LEFT_OUT = {"name", "version", "hardware"}
"""Of models and pools: told by the section's name, or of no use within a pod."""


def configuration_text(settings: Settings) -> str:
    """TOML that reads back as these settings; what has its default value is left out.

    URLs of the database and the broker come from a Secret, as does one of the storage that holds a password.
    """
    inside = _inside(settings)
    sections = [
        *(line for name in SECTIONS if name not in _ELSEWHERE for line in _section(name, getattr(inside, name))),
        *(line for model in inside.models for line in _section(f"models.{_text(model.qualified)}", model)),
        *(line for pool in inside.pools for line in _section(f"pools.{_text(pool.name)}", pool)),
    ]
    return "\n".join([f"log_level = {_text(inside.log_level)}", *sections, ""])


def digest_of_configuration(settings: Settings) -> str:
    """Changes with what the pods read, so that they are restarted."""
    return hashlib.sha256(configuration_text(settings).encode()).hexdigest()[:16]


def _inside(settings: Settings) -> Settings:
    """As seen from a pod: the API listens for others, a drain is as long as the pod's grace allows, and the cloud is
    known by its cluster."""
    host = settings.server.host if settings.server.host in {"0.0.0.0", "::"} else "0.0.0.0"
    bind = f"{f'[{host}]' if ':' in host else host}:{settings.server.port}"
    url = settings.storage.url
    cloud = PRESETS[settings.kubernetes.preset].cloud
    return dataclasses.replace(
        settings,
        server=dataclasses.replace(settings.server, bind=bind),
        storage=settings.storage if redacted(url) == url else StorageSettings(),
        pools=tuple(
            dataclasses.replace(
                pool,
                drain_seconds=drain_seconds(settings, pool),
                cloud=cloud if pool.cloud == "auto" else pool.cloud,
            )
            for pool in settings.pools
        ),
    )


def _section(name: str, record: Any) -> Iterable[str]:
    """A table's lines; none where everything has its default, unless it has a name of its own."""
    lines = [
        f"{field.name} = {_value(value)}"
        for field in dataclasses.fields(record)
        if field.name not in _LEFT_OUT and (value := getattr(record, field.name)) != _default(field)
    ]
    return ["", f"[{name}]", *lines] if lines or "." in name else []


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Lane():
            return _text(value.word)
        case str():
            return _text(value)
        case ScheduleSettings():
            return _value(_schedule(value))
        case Mapping():
            inner = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
    return repr(value)  # a number


def _schedule(schedule: ScheduleSettings) -> dict[str, Any]:
    """As the file has it."""
    limits = {name: limit for name in ("min", "max") if (limit := getattr(schedule, name)) is not None}
    times = {"from": _clock(schedule.from_minute), "to": _clock(schedule.to_minute)}
    return {"days": schedule.days, **times, "timezone": schedule.timezone, **limits}


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    """JSON's strings are TOML's, but for one control character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
