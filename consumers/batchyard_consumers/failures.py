"""What an exception in a model means for a job: the error that is stored, and whether another try may help."""

from __future__ import annotations

import logging
from traceback import extract_tb

from batchyard.errors import BadOutput, BatchyardError, InvalidInput, RetryableModelError
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
    words = _clean(str(error))
    message = f"{type(error).__name__}: {words}" if words else type(error).__name__
    retryable = isinstance(error, OSError) or (isinstance(error, BatchyardError) and error.retryable)
    return ErrorInfo(code="model_error", message=message, retryable=retryable)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the device (torch.OutOfMemoryError, known by name so that torch need not be loaded) or of the process."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


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
