"""What each tenant may use: jobs that wait, bytes that are kept, and so much a second.

Sums come from the ledgers with the catalog's refresh; what this process admitted since is added. Rates are buckets in
the memory of this process: every API process counts for itself.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from batchyard.errors import OverQuota, RateLimited, TooLarge
from batchyard.settings import NO_LIMITS, LimitSettings
from batchyard.store.base import Tenant

STORED_RETRY_SECONDS = 60.0
"""Nobody knows when bytes will be given up: finished jobs go with retention, or when they are deleted."""
QUEUED_RETRY_SECONDS = (1.0, 300.0)
"""Least and most that is asked for while too many jobs wait."""
UNKNOWN_RETRY_SECONDS = 30.0

NAMES = tuple(field.name for field in fields(LimitSettings))


class Bucket:
    """So much a second, and a second's worth at once.

    Whoever finds something left takes all that they need, so a large call passes whole and those after it wait until
    it is paid off. Otherwise a bulk's chunk of more than a second's worth could never pass.
    """

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: float, *, now: float) -> None:
        self.rate = rate
        self._left = max(rate, 1.0)
        self._at = now

    def wait_seconds(self, *, now: float) -> float:
        """Until something is left; 0 where that is now."""
        self._left = min(max(self.rate, 1.0), self._left + (now - self._at) * self.rate)
        self._at = now
        # A part of one, up to an error of rounding, is not enough for anything.
        return max(0.0, (1.0 - self._left) / self.rate) if self._left < 1.0 - 1e-9 else 0.0

    def take(self, amount: int) -> None:
        self._left -= amount


class Limiter:
    """Holds tenants to their limits. Thread-safe; those without any limit cost one look into a dictionary."""

    def __init__(self, defaults: LimitSettings = NO_LIMITS, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`defaults` are for every tenant that has no limits of its own."""
        self._defaults = defaults
        self._clock = clock
        self._lock = threading.Lock()
        self._limits: Mapping[int, LimitSettings | None] = {}
        self._queued: Mapping[int, int] = {}
        self._stored: Mapping[int, int] = {}
        self._added_jobs: dict[int, int] = {}
        self._added_bytes: dict[int, int] = {}
        self._buckets: dict[tuple[int, str], Bucket] = {}

    # --- what is known ---

    def learn(self, tenants: Sequence[Tenant], *, queued: Mapping[int, int]) -> None:
        """Take in the tenants' limits, and how many of their jobs wait."""
        with self._lock:
            self._limits = {tenant.id: _if_any(resolve(tenant, self._defaults)) for tenant in tenants}
            self._queued, self._added_jobs = queued, {}

    def learn_stored(self, stored: Mapping[int, int]) -> None:
        """Take in how many bytes of each tenant are kept."""
        with self._lock:
            self._stored, self._added_bytes = stored, {}

    @property
    def needs_stored(self) -> bool:
        """Whether any tenant's bytes are limited, so that they must be known."""
        return any(limits is not None and limits.stored_bytes for limits in self._limits.values())

    def _of(self, tenant_id: int) -> LimitSettings | None:
        """None without any limit; a tenant newer than what is known has those of everybody."""
        if tenant_id in self._limits:
            return self._limits[tenant_id]
        return _if_any(self._defaults)

    # --- what is asked for ---

    def take_request(self, tenant_id: int) -> None:
        """One more call of a tenant; RateLimited."""
        limits = self._of(tenant_id)
        if limits is None or not limits.requests_per_second:
            return
        with self._lock:
            self._bucket(tenant_id, limits, "requests_per_second").take(1)

    def take_jobs(
        self, tenant_id: int, *, jobs: int, size_bytes: int, seconds_for: Callable[[int], float | None]
    ) -> None:
        """Jobs about to be submitted, with the bytes of their inputs: all are counted, or none where it raises.

        `seconds_for` tells how long it takes until so many jobs have been worked off. Raises OverQuota, RateLimited;
        TooLarge where so many at once would always be refused.
        """
        limits = self._of(tenant_id)
        if limits is None:
            return
        with self._lock:
            self._check_queued(tenant_id, limits, jobs=jobs, seconds_for=seconds_for)
            self._check_stored(tenant_id, limits, size_bytes=size_bytes)
            if limits.jobs_per_second:
                self._bucket(tenant_id, limits, "jobs_per_second").take(jobs)
            self._added_jobs[tenant_id] = self._added_jobs.get(tenant_id, 0) + jobs
            self._added_bytes[tenant_id] = self._added_bytes.get(tenant_id, 0) + size_bytes

    def take_bytes(self, tenant_id: int, size_bytes: int) -> None:
        """Bytes about to be kept; OverQuota, TooLarge."""
        limits = self._of(tenant_id)
        if limits is None:
            return
        with self._lock:
            self._check_stored(tenant_id, limits, size_bytes=size_bytes)
            self._added_bytes[tenant_id] = self._added_bytes.get(tenant_id, 0) + size_bytes

    def _check_queued(
        self, tenant_id: int, limits: LimitSettings, *, jobs: int, seconds_for: Callable[[int], float | None]
    ) -> None:
        limit = limits.queued_jobs
        queued = self._queued.get(tenant_id, 0) + self._added_jobs.get(tenant_id, 0)
        if not limit or queued + jobs <= limit:
            return
        if jobs > limit:
            raise TooLarge(
                f"{jobs} jobs in one call; this tenant's limit queued_jobs is {limit}: send fewer at once",
                limit=limit,
                limit_name="queued_jobs",
            )
        seconds = seconds_for(queued + jobs - limit)
        least, most = QUEUED_RETRY_SECONDS
        raise OverQuota(
            f"{queued} jobs of this tenant wait; its limit queued_jobs is {limit}: send more once some have run",
            limit=limit,
            limit_name="queued_jobs",
            retry_after_seconds=math.ceil(min(max(UNKNOWN_RETRY_SECONDS if seconds is None else seconds, least), most)),
        )

    def _check_stored(self, tenant_id: int, limits: LimitSettings, *, size_bytes: int) -> None:
        limit = limits.stored_bytes
        stored = self._stored.get(tenant_id, 0) + self._added_bytes.get(tenant_id, 0)
        if not limit or stored + size_bytes <= limit:
            return
        if size_bytes > limit:
            raise TooLarge(
                f"{size_bytes} bytes in one call; this tenant's limit stored_bytes is {limit}",
                limit=limit,
                limit_name="stored_bytes",
            )
        raise OverQuota(
            f"{stored} bytes of this tenant's inputs, results and payloads are kept; its limit stored_bytes is {limit}:"
            " delete finished jobs, or wait until retention does",
            limit=limit,
            limit_name="stored_bytes",
            retry_after_seconds=STORED_RETRY_SECONDS,
        )

    def _bucket(self, tenant_id: int, limits: LimitSettings, name: str) -> Bucket:
        """The tenant's bucket with something left in it; RateLimited."""
        rate, now = float(getattr(limits, name)), self._clock()
        bucket = self._buckets.get((tenant_id, name))
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[tenant_id, name] = Bucket(rate, now=now)
        wait = bucket.wait_seconds(now=now)
        if wait:
            raise RateLimited(
                f"this tenant's limit {name} is {rate:g} at each API process: try again in {wait:.3g} s",
                limit=rate,
                limit_name=name,
                retry_after_seconds=wait,
            )
        return bucket


def resolve(tenant: Tenant, defaults: LimitSettings) -> LimitSettings:
    """A tenant's own limits, and the defaults where it has none."""
    own = {name: getattr(tenant.limits, name) for name in NAMES}
    return LimitSettings(**{name: getattr(defaults, name) if own[name] is None else own[name] for name in NAMES})


def _if_any(limits: LimitSettings) -> LimitSettings | None:
    return limits if any(getattr(limits, name) for name in NAMES) else None
