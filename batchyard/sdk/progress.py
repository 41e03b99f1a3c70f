"""The progress bar of a `map`, on standard error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

REFRESH_SECONDS = 0.1


class Bar:
    """Counts finished jobs; shows rate and time left. Owned by one thread. Imports rich when made."""

    def __init__(self, description: str, *, total: int | None, done: int = 0, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._progress.add_task(description, total=total, completed=done, rate="", failed="")
        self._done = done
        self._failed = 0
        self._started_at = time.monotonic()
        self._started_with = done
        self._shown_at = 0.0
        self._progress.start()

    def add(self, finished: int, failed: int = 0) -> None:
        """Some more jobs have ended, of which `failed` without a result."""
        self._done += finished
        self._failed += failed
        now = time.monotonic()
        if now - self._shown_at >= REFRESH_SECONDS:
            self._shown_at = now
            self._show(now)

    def close(self) -> None:
        self._show(time.monotonic())
        self._progress.stop()

    def _show(self, now: float) -> None:
        seconds = max(now - self._started_at, 1e-3)
        self._progress.update(
            self._task,
            completed=self._done,
            rate=f"{(self._done - self._started_with) / seconds:,.0f}/s",
            failed=f"[red]{self._failed:,} failed[/red]" if self._failed else "",
        )
        self._progress.refresh()
