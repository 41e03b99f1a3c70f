"""A control group with little memory: the kernel kills who asks for more, whatever it is in the middle of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = Path("/sys/fs/cgroup")


class NoControlGroup(Exception):
    """None can be made here; the message says why."""


class MemoryGroup:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int) -> None:
        """Put a process into the group, with those that it starts from now on."""
        (self._folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def memory_group(*, size: int) -> Iterator[MemoryGroup]:
    """For processes that have so many bytes together; removed at the end, when they must have ended."""
    first = CONTROL / "memory"
    folder = (first if first.is_dir() else CONTROL) / f"batchyard-{os.getpid()}"
    limit = folder / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")
    try:
        folder.mkdir()
    except OSError as refused:
        raise NoControlGroup(f"no control group can be made here: {refused}") from refused
    try:
        try:
            limit.write_text(str(size))
        except OSError as refused:
            raise NoControlGroup(f"no memory can be limited here: {refused}") from refused
        yield MemoryGroup(folder)
    finally:
        folder.rmdir()
