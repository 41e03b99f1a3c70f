"""Queue-driven asynchronous batch inference: the SDK and what every component shares.

    from batchyard import Client

    with Client() as client:
        print(client.submit("minilm", "a text").result())

Names are loaded when first used, so that importing this costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batchyard.aclient import AsyncBulk, AsyncClient, AsyncJob, AsyncResults
    from batchyard.client import Bulk, Client, Job, Results
    from batchyard.errors import (
        BatchyardError,
        BrokerDown,
        ConfigurationError,
        Conflict,
        ConnectionFailed,
        Forbidden,
        Gone,
        IdempotencyConflict,
        InvalidInput,
        InvalidRequest,
        JobCancelled,
        JobError,
        JobExpired,
        JobFailed,
        JobRetired,
        MissingExtra,
        NotFound,
        OverQuota,
        QueueFull,
        RateLimited,
        RetryableModelError,
        ServerError,
        TooLarge,
        Unauthorized,
        Unavailable,
        UnknownModel,
        WaitTimeout,
    )
    from batchyard.model import ContinuousModel, Model
    from batchyard.sdk.reading import Result

_HOMES = {
    "AsyncBulk": "batchyard.aclient",
    "AsyncClient": "batchyard.aclient",
    "AsyncJob": "batchyard.aclient",
    "AsyncResults": "batchyard.aclient",
    "Bulk": "batchyard.client",
    "Client": "batchyard.client",
    "ContinuousModel": "batchyard.model",
    "Job": "batchyard.client",
    "Model": "batchyard.model",
    "Result": "batchyard.sdk.reading",
    "Results": "batchyard.client",
}
"""Where the names that are not errors come from."""

__all__ = [
    "AsyncBulk",
    "AsyncClient",
    "AsyncJob",
    "AsyncResults",
    "BatchyardError",
    "BrokerDown",
    "Bulk",
    "Client",
    "ConfigurationError",
    "Conflict",
    "ConnectionFailed",
    "ContinuousModel",
    "Forbidden",
    "Gone",
    "IdempotencyConflict",
    "InvalidInput",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobRetired",
    "MissingExtra",
    "Model",
    "NotFound",
    "OverQuota",
    "QueueFull",
    "RateLimited",
    "Result",
    "Results",
    "RetryableModelError",
    "ServerError",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnknownModel",
    "WaitTimeout",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'batchyard' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "batchyard.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
