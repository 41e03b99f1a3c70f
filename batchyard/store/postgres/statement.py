"""How the hot statements are written.

Each is one transaction and one round trip, whatever the number of jobs. Columns travel as arrays (see `arrays`) and are
unnested in ascending id order; every row that exists already is found by its primary key through a nested loop over
them, so that rows are locked in that order. `x + 0` keeps the planner from taking a partial index that missing or stale
statistics make look smaller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from batchyard.jobs import BUCKET_MS

NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""Milliseconds by the database's clock, which goes on within a transaction."""

BUCKET = f"CASE WHEN deadline IS NULL THEN 0 ELSE (deadline + {BUCKET_MS - 1}) / {BUCKET_MS} END"
"""The deadline bucket of a row of jobs that is not terminal."""


class Statement:
    """SQL in the server's own notation, `$1` and on, turned once from named parameters, `%(name)s`.

    psycopg would parse a text of this length at every call; the bytes also keep their hash.
    """

    __slots__ = ("_names", "text", "then")

    def __init__(self, text: str, *, then: Statement | None = None) -> None:
        """`then` comes after it in the same transaction, and sees what it had to wait for; it is not answered."""
        names: dict[str, int] = {}
        numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.setdefault(found[1], len(names) + 1)}", text)
        self._names = tuple(names)
        self.text = " ".join(numbered.split()).encode()
        self.then = then

    @property
    def parameters(self) -> int:
        """How many it has of its own."""
        return len(self._names)

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters, its own before those of `then`; others are left out."""
        own = [values[name] for name in self._names]
        return own if self.then is None else own + self.then.arguments(values)
