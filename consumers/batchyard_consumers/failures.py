"""What an exception in a model means for a job: the error that is stored, and whether another try may help."""

from __future__ import annotations

import logging
import re
from traceback import extract_tb

from batchyard.errors import BadOutput, BatchyardError, InvalidInput, ModelError, RetryableModelError
from batchyard.jobs import ErrorInfo
from batchyard.telemetry import log_event

MAX_MESSAGE_CHARACTERS = 500

log = logging.getLogger(__name__)


def describe(error: BaseException) -> ErrorInfo:
    """The stored form of a failure that one job alone is to blame for.

    An exception of a model's own is not retried: the job was run again alone before it got the blame. One that speaks
    of the surroundings (RetryableModelError, and the family of OSError: network, disk) may pass and is.
    """
    if isinstance(error, InvalidInput | BadOutput | RetryableModelError):
        return ErrorInfo(code=error.code, message=_clean(error.message), retryable=error.retryable)
    if is_out_of_memory(error):
        return ErrorInfo(code="too_large", message="the input does not fit into the memory of the device")
    message = _clean(error.message if isinstance(error, ModelError) else in_a_line(error))
    retryable = isinstance(error, OSError) or (isinstance(error, BatchyardError) and error.retryable)
    return ErrorInfo(code="model_error", message=message, retryable=retryable)


def in_a_line(error: BaseException) -> str:
    """Kind and words of an exception."""
    words = _words(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  the code of a model's own exceptions may raise as well
        return ""


def caught(error: BaseException) -> Exception:
    """What a model raised, as something that may be kept: `sys.exit()` and what native libraries raise when they panic
    derive from BaseException, and would end a stage for the fault of one input. Not for where Ctrl-C may come."""
    return error if isinstance(error, Exception) else ModelError(in_a_line(error)).with_traceback(error.__traceback__)


_NO_MEMORY = re.compile(r"(CUDA|HIP|MPS)\b.*out of memory|can't allocate memory|_STATUS_ALLOC_FAILED")
"""What torch and the libraries below it say in a RuntimeError: CUDA, its own allocator for CPUs, cuBLAS and cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device (torch.OutOfMemoryError, known by name so that torch need not be loaded) or of the process."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(_words(error)) is not None


def loses_device(error: BaseException) -> bool:
    """Whether every later call of this process on its device fails as well: an illegal access, a failed assertion, a
    device that fell off the bus (torch.AcceleratorError, a RuntimeError in older versions of torch)."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or _words(error).startswith(("CUDA error:", "HIP error:"))


class FailureLog:
    """Logs where the first failure of each kind happened, so that a million bad inputs do not fill the disk."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, str]] = set()

    def note(self, *, model: str, stage: str, error: BaseException) -> None:
        kind = (model, stage, type(error).__name__)
        if kind in self._seen or isinstance(error, InvalidInput | BadOutput | RetryableModelError):
            return
        self._seen.add(kind)
        # Where it happened, not its words: these may quote the input, and stand in the job's error for its tenant.
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(error.__traceback__)]
        kind_of = type(error).__name__
        log_event(log, "model_failed", level=logging.WARNING, model=model, stage=stage, kind=kind_of, where=where)


def _clean(message: str) -> str:
    """Without what JSON and the databases refuse, and short."""
    text = message.encode("utf-8", "replace").decode().replace("\0", "")
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
