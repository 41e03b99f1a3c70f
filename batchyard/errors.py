"""Every error that batchyard raises or answers.

    BatchyardError
    ├── InvalidRequest            invalid_request        422
    │   ├── InvalidInput          invalid_input          422   the input does not fit the model
    │   └── IdempotencyConflict   idempotency_conflict   422   another body under a known key
    ├── Unauthorized              unauthorized           401
    ├── Forbidden                 forbidden              403
    ├── NotFound                  not_found              404
    │   └── UnknownModel          unknown_model          404
    ├── Gone                      gone                   410   retired: its results are no longer kept
    ├── MethodNotAllowed          method_not_allowed     405
    ├── Conflict                  conflict               409   not possible in the present state
    ├── TooLarge                  too_large              413
    ├── QueueFull                 queue_full             429   retryable, with retry_after_seconds
    │   └── OverQuota             over_quota             429   a tenant has too many jobs waiting, or bytes kept
    ├── RateLimited               rate_limited           429   a tenant asks too often; retryable, as above
    ├── Unavailable               unavailable            503   retryable: database away, shutting down
    │   └── BrokerDown            broker_down            503   the broker does not answer; never harms a submission
    ├── ServerError               server_error           500
    ├── ConnectionFailed          connection_failed      –     the SDK could not reach the API; retryable
    ├── WaitTimeout               wait_timeout           –     the SDK's own timeout passed; the job goes on
    ├── JobError                  (the job's own code)   –     the job ended without a result
    │   ├── JobFailed
    │   ├── JobCancelled          cancelled
    │   ├── JobExpired            expired
    │   └── JobRetired            retired                it had ended, and is no longer kept; a Gone too
    ├── ConfigurationError        invalid_configuration  –     every fault of a configuration, at once
    ├── InvalidTrace              invalid_trace          –     every fault of a trace to simulate, at once
    ├── MissingExtra              missing_extra          –     names the extra to install
    └── ModelError                                       –     raised in a consumer
        ├── ModelLoadError        model_load_failed            the model cannot serve; its jobs stay queued
        ├── BadOutput             bad_output                   a result that cannot be stored; fails that job alone
        └── RetryableModelError   model_busy                   the author asks for another try of these items

A message names what was given, what is allowed and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class BatchyardError(Exception):
    """The root of the tree. `code` is stable and meant for programs; the message is for people."""

    code: str = "error"
    status: ClassVar[int] = 500
    retryable: bool = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        """Further members of the problem document, such as `pointer`, `index`, `limit`, `allowed`."""

    @property
    def public(self) -> str:
        """The message for callers of the API, who need not know how the system is built."""
        return self.message

    @property
    def retry_after_seconds(self) -> float | None:
        """How long to wait before the next try, where that is known."""
        value = self.details.get("retry_after_seconds")
        return None if value is None else float(value)


class InvalidRequest(BatchyardError):
    code = "invalid_request"
    status = 422


class InvalidInput(InvalidRequest):
    """Also what a model's `preprocess` raises or returns in an item's place to fail that item alone."""

    code = "invalid_input"


class IdempotencyConflict(InvalidRequest):
    code = "idempotency_conflict"


class Unauthorized(BatchyardError):
    code = "unauthorized"
    status = 401


class Forbidden(BatchyardError):
    code = "forbidden"
    status = 403


class NotFound(BatchyardError):
    code = "not_found"
    status = 404


class UnknownModel(NotFound):
    code = "unknown_model"


class MethodNotAllowed(BatchyardError):
    code = "method_not_allowed"
    status = 405


class Gone(BatchyardError):
    code = "gone"
    status = 410


class Conflict(BatchyardError):
    code = "conflict"
    status = 409


class TooLarge(BatchyardError):
    code = "too_large"
    status = 413


class QueueFull(BatchyardError):
    code = "queue_full"
    status = 429
    retryable = True


class OverQuota(QueueFull):
    """`limit_name` in the details says which of the tenant's limits, `limit` how much it is."""

    code = "over_quota"


class RateLimited(BatchyardError):
    """As OverQuota; what is limited comes back by itself, after exactly `retry_after_seconds`."""

    code = "rate_limited"
    status = 429
    retryable = True


class Unavailable(BatchyardError):
    code = "unavailable"
    status = 503
    retryable = True


class BrokerDown(Unavailable):
    """The broker does not answer. Nothing is lost by it: the database alone holds the truth about jobs."""

    code = "broker_down"


class ServerError(BatchyardError):
    code = "server_error"
    status = 500


class ConnectionFailed(BatchyardError):
    code = "connection_failed"
    retryable = True


class WaitTimeout(BatchyardError):
    code = "wait_timeout"
    retryable = True


class JobError(BatchyardError):
    """A job ended without a result. `code` is the job's own, `details` may carry `job_id` and `index`."""

    code = "job_error"

    def __init__(self, message: str, *, code: str | None = None, retryable: bool = False, **details: Any) -> None:
        super().__init__(message, **details)
        if code is not None:
            self.code = code
        self.retryable = retryable


class JobFailed(JobError):
    code = "failed"


class JobCancelled(JobError):
    code = "cancelled"


class JobExpired(JobError):
    code = "expired"


class JobRetired(JobError, Gone):
    """The job had ended, in whichever way; what became of it is no longer kept."""

    code = "retired"


class ConfigurationError(BatchyardError):
    """All faults of a configuration, reported together."""

    code = "invalid_configuration"

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        super().__init__(f"the configuration has {count}:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class InvalidTrace(BatchyardError):
    """All faults of a file that is to be simulated, by line."""

    code = "invalid_trace"

    def __init__(self, name: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__(f"{name} is no trace that can be replayed:\n" + "\n".join(f"  - {fault}" for fault in faults))


class MissingExtra(BatchyardError):
    code = "missing_extra"

    def __init__(self, *, feature: str, extra: str) -> None:
        super().__init__(f'{feature} needs the extra "{extra}": pip install "batchyard[{extra}]"', extra=extra)


class ModelError(BatchyardError):
    code = "model_error"


class ModelLoadError(ModelError):
    code = "model_load_failed"


class BadOutput(ModelError):
    """A result holds NaN, an infinity, NUL, a lone surrogate or a type that has no stored form."""

    code = "bad_output"


class RetryableModelError(ModelError):
    """Raised by a model whose failure may pass: the jobs back off and are tried again."""

    code = "model_busy"
    retryable = True


def from_problem(problem: dict[str, Any], *, status: int) -> BatchyardError:
    """Turn an RFC 9457 problem document into the typed error with the same `code`; unknown codes by status."""
    details = {k: v for k, v in problem.items() if k not in {"type", "title", "status", "detail", "code", "retryable"}}
    message = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    by_code = _by_code()
    kind = (
        by_code.get(str(problem.get("code")))
        or _BY_STATUS.get(status)
        or (ServerError if status >= 500 else InvalidRequest)
    )
    return kind(message, **details)


_BY_STATUS: dict[int, type[BatchyardError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    422: InvalidRequest,
    429: QueueFull,
    503: Unavailable,
}


def _by_code() -> dict[str, type[BatchyardError]]:
    answered: dict[str, type[BatchyardError]] = {}
    pending: list[type[BatchyardError]] = [BatchyardError]
    while pending:
        kind = pending.pop()
        # Others' subclasses share the code of one of these, and are made otherwise.
        pending.extend(each for each in kind.__subclasses__() if each.__module__ == __name__)
        if "status" in kind.__dict__ or kind.__mro__[1] in answered.values():
            answered[kind.code] = kind
    return answered
