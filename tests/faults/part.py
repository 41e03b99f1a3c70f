"""One run in a process of its own: `python -m tests.faults.part FOLDER`, where FOLDER has `plan.json`.

Leaves `history.jsonl` and `findings.json` there.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import msgspec

from tests.faults.report import findings
from tests.faults.running import Plan, run


def main(folder: Path) -> None:
    # So that whoever was started is ended too, also where whoever asked for the run is gone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("was told to end"))
    threading.Thread(target=_end_with_input, name="faults-input", daemon=True).start()
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    began = time.monotonic()
    history = run(plan)
    digest = history.save(folder / "history.jsonl")
    found = findings(history, digest=digest, seconds=time.monotonic() - began)
    (folder / "findings.json").write_bytes(msgspec.json.encode(found))


def _end_with_input() -> None:
    """Standard input is a pipe that its asker holds open; a terminal or a file is not waited for."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
