"""What `import batchyard` offers and what it costs."""

import inspect
import subprocess
import sys

import batchyard
from batchyard.aclient import AsyncBulk, AsyncClient, AsyncJob
from batchyard.client import Bulk, Client, Job

PUBLIC = [
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

HEAVY = {"torch", "celery", "kombu", "sqlalchemy", "numpy", "rich", "click"}

COST = """
import sys, time
start = time.perf_counter()
import batchyard
seconds = time.perf_counter() - start
from batchyard import Client, Model
print(seconds, *sorted(name for name in sys.modules if "." not in name))
"""


def test_the_public_names_are_these() -> None:
    assert sorted(batchyard.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(batchyard, name).__name__ == name
    assert set(PUBLIC) <= set(dir(batchyard))


def test_importing_is_cheap_and_loads_no_machinery() -> None:
    runs = [subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True) for _ in range(3)]
    told = [run.stdout.split() for run in runs]

    assert min(float(words[0]) for words in told) <= 0.150
    assert HEAVY.isdisjoint(told[0][1:])


def test_both_clients_offer_the_same() -> None:
    left_out = {"direct", "close", "aclose"}
    for one, other in ((Client, AsyncClient), (Job, AsyncJob), (Bulk, AsyncBulk)):
        ours, theirs = _methods(one), _methods(other)
        assert ours.keys() - left_out == theirs.keys() - left_out
        for name in ours.keys() - left_out:
            assert _parameters(ours[name]) == _parameters(theirs[name]), name


def _methods(kind: type) -> dict[str, object]:
    return {
        name: member
        for name, member in inspect.getmembers(kind, lambda m: inspect.isfunction(m) or inspect.ismethod(m))
        if not name.startswith("_")
    }


def _parameters(function: object) -> list[tuple[str, object, object]]:
    assert callable(function)
    signature = inspect.signature(function)
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]
