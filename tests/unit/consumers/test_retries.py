import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.errors import BadOutput, InvalidInput, RetryableModelError, Unavailable
from batchyard.jobs import ErrorInfo, State
from batchyard_consumers.failures import MAX_MESSAGE_CHARACTERS, describe
from batchyard_consumers.retries import RetryPolicy
from tests.unit.consumers.jobs import claimed

BUSY = ErrorInfo(code="model_busy", message="later", retryable=True)


def test_the_ceiling_doubles_up_to_the_longest_wait() -> None:
    policy = RetryPolicy(base_seconds=1.0, max_seconds=10.0)
    assert [policy.ceiling_seconds(n) for n in (1, 2, 3, 4, 5, 5000)] == [1, 2, 4, 8, 10, 10]


@given(st.integers(0, 100_000))
def test_the_wait_is_drawn_between_zero_and_the_ceiling(failures: int) -> None:
    policy = RetryPolicy(base_seconds=0.5, max_seconds=60.0)
    assert 1 <= policy.back_off_ms(failures) <= 60_000


def test_the_wait_has_full_jitter() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    assert RetryPolicy(base_seconds=2.0, draw=draw).back_off_ms(3) == 8000
    assert drawn == [(0.0, 8.0)]


def test_a_retryable_failure_waits_while_the_budget_lasts() -> None:
    policy = RetryPolicy(base_seconds=1.0)
    outcome = policy.outcome(claimed(1, failures=1, max_failures=3), BUSY)
    assert outcome.state is State.WAITING
    assert 1 <= outcome.retry_in_ms <= 2000
    last = policy.outcome(claimed(1, failures=2, max_failures=3), BUSY)
    assert (last.state, last.error) == (State.FAILED, BUSY)


def test_a_failure_that_will_not_pass_ends_the_job() -> None:
    error = ErrorInfo(code="invalid_input", message="no")
    assert RetryPolicy().outcome(claimed(1), error).state is State.FAILED


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (InvalidInput("no"), "invalid_input", False),
        (BadOutput("no"), "bad_output", False),
        (RetryableModelError("later"), "model_busy", True),
        (OutOfMemoryError("no"), "too_large", False),
        (MemoryError(), "too_large", False),
        (ConnectionResetError("gone"), "model_error", True),
        (TimeoutError(), "model_error", True),
        (Unavailable("away"), "model_error", True),
        (ValueError("bad"), "model_error", False),
        (KeyError("x"), "model_error", False),
    ],
)
def test_what_an_exception_means(error: Exception, code: str, retryable: bool) -> None:
    info = describe(error)
    assert (info.code, info.retryable) == (code, retryable)
    assert info.message


def test_a_message_can_always_be_stored() -> None:
    message = describe(ValueError("a\0b \ud800 " + "x" * 10_000)).message
    assert "\0" not in message
    message.encode()
    assert len(message) <= MAX_MESSAGE_CHARACTERS + len("ValueError: ")
