"""What tenants may use, apart from any server."""

import pytest

from batchyard.errors import OverQuota, RateLimited, TooLarge
from batchyard.jobs import State
from batchyard.limits import Limiter, resolve
from batchyard.settings import LimitSettings
from batchyard.store.base import Tenant, TenantLimits
from tests.unit.samples import CatalogStore, Clock, backlog_row, catalog

ACME = Tenant(id=2, name="acme")


def limiter(limits: TenantLimits, *, clock: Clock | None = None, **queued: int) -> Limiter:
    made = Limiter(clock=clock or Clock())
    made.learn([Tenant(id=2, name="acme", limits=limits)], queued={2: queued.get("queued", 0)})
    return made


def take(of: Limiter, jobs: int, *, size_bytes: int = 0, seconds: float | None = None) -> None:
    of.take_jobs(2, jobs=jobs, size_bytes=size_bytes, seconds_for=lambda _: seconds)


def test_a_tenants_own_limits_go_before_those_of_all_and_zero_is_none() -> None:
    defaults = LimitSettings(queued_jobs=10, stored_bytes=20, jobs_per_second=3.0)
    own = Tenant(id=2, name="acme", limits=TenantLimits(queued_jobs=0, stored_bytes=5))
    assert resolve(own, defaults) == LimitSettings(queued_jobs=0, stored_bytes=5, jobs_per_second=3.0)
    assert resolve(ACME, defaults) == defaults


def test_without_limits_nothing_is_counted_or_refused() -> None:
    free = limiter(TenantLimits())
    for _ in range(1000):
        free.take_request(2)
        take(free, 10_000, size_bytes=10**12)
    assert not free.needs_stored


def test_a_tenant_newer_than_what_is_known_has_the_limits_of_all() -> None:
    fresh = Limiter(LimitSettings(queued_jobs=2), clock=Clock())
    fresh.learn([], queued={})
    fresh.take_jobs(9, jobs=2, size_bytes=0, seconds_for=lambda _: None)
    with pytest.raises(OverQuota):
        fresh.take_jobs(9, jobs=1, size_bytes=0, seconds_for=lambda _: None)


def test_waiting_jobs_are_limited_and_the_wait_is_how_long_the_excess_takes() -> None:
    asked: list[int] = []

    def seconds_for(jobs: int) -> float:
        asked.append(jobs)
        return jobs * 2.5

    full = limiter(TenantLimits(queued_jobs=100), queued=90)
    take(full, 8)
    with pytest.raises(OverQuota, match="98 jobs of this tenant wait; its limit queued_jobs is 100") as refused:
        full.take_jobs(2, jobs=5, size_bytes=0, seconds_for=seconds_for)
    assert (asked, refused.value.details["retry_after_seconds"], refused.value.retryable) == ([3], 8, True)
    take(full, 2)
    with pytest.raises(OverQuota) as unknown:
        take(full, 1)
    assert unknown.value.retry_after_seconds == 30
    # What can never pass is no matter of waiting.
    with pytest.raises(TooLarge, match="101 jobs in one call"):
        take(full, 101)


def test_kept_bytes_are_limited_over_jobs_and_payloads() -> None:
    full = limiter(TenantLimits(stored_bytes=1000))
    assert full.needs_stored
    full.learn_stored({2: 600})
    take(full, 1, size_bytes=300)
    full.take_bytes(2, 100)
    with pytest.raises(OverQuota, match="stored_bytes is 1000: delete finished jobs") as refused:
        take(full, 1, size_bytes=1)
    assert refused.value.details["limit_name"] == "stored_bytes"
    with pytest.raises(TooLarge):
        full.take_bytes(2, 1001)
    full.learn_stored({2: 500})
    full.take_bytes(2, 500)


def test_what_is_refused_is_not_counted() -> None:
    full = limiter(TenantLimits(stored_bytes=100, jobs_per_second=10))
    full.learn_stored({2: 100})
    for _ in range(50):
        with pytest.raises(OverQuota):
            take(full, 5, size_bytes=1)
    full.learn_stored({})
    take(full, 10, size_bytes=100)


def test_a_rate_gives_a_second_at_once_and_then_says_exactly_when() -> None:
    clock = Clock()
    slow = limiter(TenantLimits(requests_per_second=4), clock=clock)
    for _ in range(4):
        slow.take_request(2)
    with pytest.raises(RateLimited, match="requests_per_second is 4 at each API process") as refused:
        slow.take_request(2)
    wait = float(refused.value.details["retry_after_seconds"])
    assert wait == pytest.approx(0.25)
    clock.now += wait * 0.99
    with pytest.raises(RateLimited):
        slow.take_request(2)
    clock.now += wait * 0.01
    slow.take_request(2)
    slow.take_request(3)  # others are not touched


def test_over_time_exactly_the_rate_passes_in_calls_of_any_size() -> None:
    for size in (1, 7, 500):
        clock = Clock()
        slow = limiter(TenantLimits(jobs_per_second=20), clock=clock)
        began, passed, pauses = clock.now, 0, []
        while clock.now - began < 200:
            try:
                take(slow, size)
                passed += size
            except RateLimited as refused:
                pauses.append(refused.retry_after_seconds or 0.0)
                clock.now += pauses[-1]
        assert min(pauses) > 0
        # A second's worth is there at the start, and the last call may be in debt.
        assert 200 * 20 - size <= passed <= 201 * 20 + size, size


def test_a_changed_rate_counts_from_the_next_call() -> None:
    clock = Clock()
    slow = limiter(TenantLimits(requests_per_second=0.1), clock=clock)
    slow.take_request(2)
    with pytest.raises(RateLimited) as refused:
        slow.take_request(2)
    assert refused.value.retry_after_seconds == pytest.approx(10)
    slow.learn([Tenant(id=2, name="acme", limits=TenantLimits(requests_per_second=100))], queued={})
    for _ in range(100):
        slow.take_request(2)


def test_the_catalog_counts_what_waits_and_reads_bytes_only_where_they_are_limited() -> None:
    store, clock = CatalogStore(), Clock()
    store.rows = [backlog_row(1, State.QUEUED, 3), backlog_row(1, State.WAITING, 4), backlog_row(1, State.RUNNING, 90)]
    known = catalog(store, limits=LimitSettings(queued_jobs=10), clock=clock)
    known.refresh()
    known.admit(1, 3, tenant_id=1, size_bytes=0)
    with pytest.raises(OverQuota, match="10 jobs of this tenant"):
        known.admit(1, 1, tenant_id=1, size_bytes=0)
    store.stored = {1: 10}
    store.shared_by = [Tenant(id=1, name="default", limits=TenantLimits(queued_jobs=0, stored_bytes=11))]
    known.refresh()
    known.admit(1, 1000, tenant_id=1, size_bytes=1)
    with pytest.raises(OverQuota, match="stored_bytes"):
        known.admit(1, 1, tenant_id=1, size_bytes=1)
