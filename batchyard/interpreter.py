"""Settings of the interpreter for processes that answer others."""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 0.001
"""How long a thread may keep the interpreter while another wants it.

Each statement of SQLite lets the interpreter go and asks for it again while the process holds the turn to write: at the
default of 5 ms one busy thread stretches every transaction by many times its own length.
"""


def answer_promptly() -> None:
    """Hand the interpreter over quickly, and leave what is loaded by now out of every later garbage collection.

    A full collection stops all threads for as long as it takes to walk everything that was ever imported. Call it once
    the process has loaded what it needs, and again after loading more.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
