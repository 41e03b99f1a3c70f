"""A model whose inputs harm the process that runs them. Found by its dotted path: tests run in the checkout."""

import ctypes
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchyard.model import Model

ROOM_BYTES = 256 * 1024 * 1024


class Harmful(Model):
    """`{"do": DEED, "value": …, "once": FILE}`; with `once` the harm is done one time.

    `echo` does none; `sleep` lets the interpreter go on, `hold` keeps its lock; `eat` asks for more memory than the
    process may have; `swell` takes so many bytes and fills them.
    """

    def forward(self, items: Sequence[Any]) -> Sequence[Any]:
        for item in items:
            if item["do"] != "echo" and not _is_done(item):
                _HARM[item["do"]](item["value"])
        return [item["value"] for item in items]


def _is_done(item: dict[str, Any]) -> bool:
    """Whether the harm was done before; the file says so from now on."""
    if "once" not in item:
        return False
    mark = Path(item["once"])
    was = mark.exists()
    mark.touch()
    return was


def _hold(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # unlike CDLL, PyDLL keeps the lock


def _eat(size: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, before[1]))
    try:
        bytearray(size)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _swell(size: int) -> None:
    b"x" * size  # filled, not merely reserved


_HARM = {"sleep": time.sleep, "hold": _hold, "eat": _eat, "swell": _swell}
