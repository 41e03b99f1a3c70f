"""How events are logged.

A log record is an event with a stable name, and everything that varies stands in fields: `log_event(log, "name", …)`,
or `log.info("for people", extra={"event": "name", …})`. `debug` is for whoever works on batchyard, `info` for whoever
runs it, `warning` for what mended itself, `error` for what needs a person. No record holds an input, a result or a key.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import IO, Any, Literal

import msgspec

LogFormat = Literal["auto", "console", "json"]


def log_event(
    logger: logging.Logger, event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
) -> None:
    """Log one event. `fields` are JSON-like; `error` adds its traceback."""
    if logger.isEnabledFor(level):
        logger.log(level, event, exc_info=error, extra={"fields": fields})


def configure_logging(level: str = "info", format: LogFormat = "auto", *, stream: IO[str] | None = None) -> None:  # noqa: A002
    """Send every logger's records to one stream (standard error), replacing what was set up before.

    `auto` is for people where the stream is a terminal, and JSON, one object a line, where it is not.
    """
    target = stream or sys.stderr
    readable = format == "console" or (format == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(ConsoleFormatter() if readable else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "urllib3", "sentence_transformers", "alembic.runtime"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


_STANDARD = frozenset([*logging.makeLogRecord({}).__dict__, "message", "asctime"])
"""What every record holds; anything else was given as `extra`."""


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event and fields of a record; what names no event, as other people's messages, becomes the event `log`."""
    fields = getattr(record, "fields", None)
    if isinstance(fields, dict):
        return record.getMessage(), fields
    given = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    return str(given.pop("event", "log")), {"message": record.getMessage(), **given}


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": event,
            "logger": record.name,
            **fields,
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(entry, enc_hook=str).decode()
        except UnicodeEncodeError:  # half a pair of surrogates, which UTF-8 cannot hold
            return json.dumps(entry, default=str)


def _told(name: str, value: Any) -> str:
    return _plain(str(value)) if name == "message" else f"{name}={_plain(str(value))}"


def _plain(text: str) -> str:
    """On one line and without what a terminal obeys: whoever is named in a log must not write others."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        told = " ".join([*([event] if event != "log" else []), *(_told(*field) for field in fields.items())])
        line = f"{clock} {record.levelname.lower():<7} {record.name}: {told}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
