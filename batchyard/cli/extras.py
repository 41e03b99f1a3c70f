"""Turning a missing package into the extra that brings it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from batchyard.errors import MissingExtra


@contextmanager
def needs(*, feature: str, extra: str) -> Iterator[None]:
    """Imports made inside name the extra where a third-party package is absent; our own mistakes stay as they are."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("batchyard"):
            raise
        raise MissingExtra(feature=feature, extra=extra) from error


def require(packages: Iterable[str], *, feature: str, extra: str) -> None:
    """MissingExtra where one of these packages is not installed; imports none of them."""
    for package in packages:
        # A package that is loaded may have replaced its module by one without a spec.
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            raise MissingExtra(feature=feature, extra=extra)
