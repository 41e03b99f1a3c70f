"""Several consumers of one pool on one machine, each a process of its own on its device, looked after together."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Sequence

from batchyard.devices import Place
from batchyard.processes import Child, end_all
from batchyard.settings import PoolSettings, Settings
from batchyard.telemetry import log_event

LOOK_SECONDS = 0.2
MOST_DEATHS = 5
"""In a row, of each of them, soon after its start: then there is no point in going on."""
END_MARGIN_SECONDS = 3.0
"""Beyond the pool's drain_seconds, before one that has not ended is killed."""

log = logging.getLogger(__name__)


class Siblings:
    """`run` belongs to the main thread; `stop` may be called from a signal handler. What the processes say goes to
    this one's standard output, and into their logs."""

    def __init__(
        self, settings: Settings, pool: PoolSettings, *, places: Sequence[Place], command: Sequence[str]
    ) -> None:
        """`command` starts one consumer, whose place is added to it."""
        self._pool = pool
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._children = [
            Child(
                f"consumer {number} of {pool.name} on {place.device}",
                [*command, *place.arguments],
                log=settings.state_dir / "logs" / f"worker-{pool.name}-{number}.log",
                variables=place.variables,
                on_line=_show,
            )
            for number, place in enumerate(places, start=1)
        ]

    def stop(self) -> None:
        """Drain all; asked again: at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> int:
        """Keep all of them running until told to stop, then drain them. The exit status: 0 where all left in order."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        for child in self._children:
            child.start()
        while not self._stop.wait(LOOK_SECONDS):
            for child in self._children:
                if (news := child.look_after()) is not None:
                    log_event(log, "consumer_died", level=logging.WARNING, pool=self._pool.name, news=news)
            if all(child.deaths >= MOST_DEATHS for child in self._children):
                log_event(log, "giving_up", level=logging.ERROR, pool=self._pool.name, deaths=MOST_DEATHS)
                break
        running = [child for child in self._children if child.is_running]
        killed = end_all(running, grace_seconds=self._pool.drain_seconds + END_MARGIN_SECONDS, hurry=self._hurry)
        # By the signal itself ends one that is still starting, and holds nothing.
        in_order = all(child.status in {0, -signal.SIGTERM} for child in running)
        return 0 if self._stop.is_set() and in_order and not killed else 1


def _show(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
