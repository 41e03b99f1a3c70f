"""What `import batchyard` costs."""

from __future__ import annotations

import statistics
import subprocess
import sys

_PROGRAM = (
    "import sys, time; t = time.perf_counter(); import batchyard; batchyard.Client; d = time.perf_counter() - t;"
    "heavy = {'torch', 'celery', 'sqlalchemy'} & set(sys.modules); print(d * 1e3, *heavy)"
)


def measure(*, runs: int = 11) -> tuple[float, set[str]]:
    """Median milliseconds of the import in a fresh interpreter, and which heavy packages it loaded."""
    times, heavy = [], set()
    for _ in range(runs):
        first, *rest = subprocess.run(
            [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
        ).stdout.split()
        times.append(float(first))
        heavy.update(rest)
    return statistics.median(times), heavy
