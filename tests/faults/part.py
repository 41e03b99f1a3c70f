"""One run in a process of its own: `python -m tests.faults.part FOLDER`, where FOLDER has `plan.json`.

Leaves `history.jsonl` and `findings.json` there.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import msgspec

from tests.faults.report import findings
from tests.faults.running import Plan, run


def main(folder: Path) -> None:
    # So that whoever was started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("was told to end"))
    plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=Plan)
    began = time.monotonic()
    history = run(plan)
    digest = history.save(folder / "history.jsonl")
    found = findings(history, digest=digest, seconds=time.monotonic() - began)
    (folder / "findings.json").write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
