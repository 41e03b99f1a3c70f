"""How a fault of the configuration reads: name, value given, where from, what is allowed; secrets never shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

_USERINFO = re.compile(r"(?<=://)([^/@\s:]*):([^/\s]*)@")
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&;](?:password|passwd|pwd|secret|token|api_?key|access_?key|sslpassword)=)[^&;\s]*"
)
_SHOWN_LENGTH = 120


def redacted(text: str) -> str:
    """A URL, or a text that holds some, with every password and secret parameter replaced by `***`."""
    return _SECRET_PARAMETER.sub(r"\1***", _USERINFO.sub(r"\1:***@", text))


def fault(name: str, *, value: Any, origin: str, allowed: str) -> str:
    return f"{name} = {_shown(value)} ({origin}): must be {allowed}"


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean …?" where something close exists, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def listed(words: Iterable[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _shown(value: Any) -> str:
    text = f'"{redacted(value)}"' if isinstance(value, str) else redacted(str(value))
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + "…"
