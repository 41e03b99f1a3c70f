"""Whether this process should be sent requests, as far as the database goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from batchyard.errors import BatchyardError
from batchyard.store import migrate

CHECK_SECONDS = 2.0
"""How long the database may take before the process counts as not ready."""
KEPT_SECONDS = 1.0
"""How long what was found holds: anybody may ask, and every probe is a commit."""


class Readiness:
    """Owned by the event loop. One probe at a time, whoever asks."""

    def __init__(self, probe: Callable[[], Awaitable[str]]) -> None:
        """`probe` writes to the database and tells the version of its schema."""
        self._probe = probe
        self._turn = asyncio.Lock()
        self._last: dict[str, str] = {}
        self._until = 0.0

    async def database(self) -> dict[str, str]:
        """What was found: `database` is "ok" or why not, `schema` its version where that was read."""
        async with self._turn:
            if time.monotonic() >= self._until:
                self._last = await self._look()
                self._until = time.monotonic() + KEPT_SECONDS
        return self._last

    async def _look(self) -> dict[str, str]:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                version = await self._probe()
        except TimeoutError:
            return {"database": f"no answer within {CHECK_SECONDS:.0f} s"}
        except BatchyardError as error:
            return {"database": error.code}
        fits = migrate.fits(version)
        return {"database": "ok" if fits else "its schema does not fit this version of batchyard", "schema": version}
