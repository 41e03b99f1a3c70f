"""The circuit breaker: who may call a broker that failed, and when."""

import threading

from batchyard.broker.breaker import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_admits_until_a_failure_and_after_a_pause_one() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.admits()
    breaker.failed()
    assert not breaker.admits()
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.admits()
    assert not breaker.admits(), "the first probes; the others wait for what it finds"
    breaker.succeeded()
    assert breaker.is_closed
    assert breaker.admits()


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    pauses = []
    for _ in range(6):
        breaker.failed()
        began = clock.now
        while not breaker.admits():
            clock.now += 0.05
        pauses.append(clock.now - began)
    assert pauses[0] < pauses[1] < pauses[2]
    assert LONGEST_PAUSE_SECONDS <= pauses[-1] < LONGEST_PAUSE_SECONDS + 0.1


def test_a_probe_whose_thread_never_answers_does_not_close_it_for_good() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.failed()
    clock.now += FIRST_PAUSE_SECONDS
    assert breaker.admits()
    clock.now += 1.0
    assert breaker.admits()


def test_of_many_threads_one_probes() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.failed()
    clock.now += 10
    admitted = []
    threads = [threading.Thread(target=lambda: admitted.append(breaker.admits())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admitted.count(True) == 1
