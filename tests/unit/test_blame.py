"""Who is charged with the end of a consumer's process."""

from batchyard.blame import CRASH_LIMIT, UNEXPLAINED_LIMIT, Death, Record, charged, crash_error


def test_a_group_makes_suspects_and_charges_nobody() -> None:
    death = Death(executing=frozenset({1, 2}))
    assert charged(1, Record(), death) == Record(suspect=True)
    assert charged(1, Record(suspect=True, crashes=2), death) == Record(suspect=True, crashes=2)


def test_what_was_held_but_not_executing_is_left_alone() -> None:
    known = Record(crashes=1, unexplained=1)
    assert charged(3, known, Death(executing=frozenset({1, 2}))) == known
    assert charged(3, known, Death(executing=frozenset())) == known


def test_a_job_that_ran_alone_is_charged_until_it_is_enough() -> None:
    record = Record()
    for crashes in range(1, CRASH_LIMIT + 1):
        assert not record.is_fatal
        record = charged(1, record, Death(executing=frozenset({1})))
        assert record == Record(suspect=True, crashes=crashes)
    assert record.is_fatal


def test_deaths_that_nobody_can_explain_make_suspects_but_never_fail_a_job() -> None:
    record = Record()
    for number in range(1, 10 * UNEXPLAINED_LIMIT):
        record = charged(1, record, Death(executing=None))
        assert record == Record(suspect=number >= UNEXPLAINED_LIMIT, unexplained=number)
    assert not record.is_fatal


def test_the_error_says_what_happened_and_how_often() -> None:
    error = crash_error(Record(crashes=3), Death(executing=frozenset({1}), cause="was ended by SIGSEGV"))
    assert (error.code, error.retryable) == ("crash_loop", False)
    assert "was ended by SIGSEGV" in error.message
    assert "3 times" in error.message
    assert "ended while" in crash_error(Record(crashes=3), Death(executing=None)).message
