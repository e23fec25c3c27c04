"""Rates of use per tenant, in this process: token buckets, and a count of what runs."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from onebasis.identity.errors import QuotaExceeded
from onebasis.identity.quota import Quota

_MINUTE_S: Final = 60.0
_N_TENANTS_BEFORE_SWEEP: Final = 1024


class TokenBucket:
    """Holds at most a minute's allowance and fills evenly. The owner locks; time comes from outside.

    Whoever comes while it holds anything is served, and what that costs is taken, below zero if need be: costs are
    known only afterwards, and no request is too large to be ever served. A debt is paid by waiting.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._filled_s = now_s

    def allow(self, per_minute: int, now_s: float) -> None:
        """Set the allowance, which may have been changed. What is in the bucket stays, as far as it fits."""
        self._fill(now_s)
        self._per_minute = per_minute
        self._level = min(self._level, float(per_minute))

    def wait_s(self, least: float, now_s: float) -> float:
        """Seconds until it holds `least`; 0 when it does, infinite when it never will."""
        self._fill(now_s)
        missing = least - self._level
        if missing <= 0:
            return 0.0
        return math.inf if least > self._per_minute else missing * _MINUTE_S / self._per_minute

    def take(self, amount: float, now_s: float) -> None:
        self._fill(now_s)
        self._level -= amount

    def is_full(self, now_s: float) -> bool:
        """As good as new: forgetting it changes nothing."""
        self._fill(now_s)
        return self._level >= self._per_minute

    def _fill(self, now_s: float) -> None:
        gained = (now_s - self._filled_s) * self._per_minute / _MINUTE_S
        self._level = min(float(self._per_minute), self._level + gained)
        self._filled_s = now_s


class _Use:
    """One tenant's, now."""

    def __init__(self) -> None:
        self.n_running = 0
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None

    def is_idle(self, now_s: float) -> bool:
        buckets = (self.requests, self.tokens)
        return self.n_running == 0 and all(bucket is None or bucket.is_full(now_s) for bucket in buckets)


class RateLimits:
    """Any thread; one lock, held for arithmetic only.

    Memory is bounded: whoever is idle with full buckets is forgotten, so only tenants of the last minutes are here.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._uses: dict[str, _Use] = {}
        self._n_before_sweep = _N_TENANTS_BEFORE_SWEEP

    @contextmanager
    def request(self, tenant: str | None, quota: Quota) -> Iterator[None]:
        """Count a request while it runs. Raises QuotaExceeded, and then it costs nothing."""
        if tenant is None:
            yield
            return
        self._enter(tenant, quota)
        try:
            yield
        finally:
            with self._lock:
                self._uses[tenant].n_running -= 1

    def check_tokens(self, tenant: str | None, quota: Quota) -> None:
        """Raises QuotaExceeded while the tenant has no tokens left."""
        allowed = quota.tokens_per_minute
        if tenant is None or allowed is None:
            return
        with self._lock:
            use, now_s = self._use(tenant), self._clock()
            if use.tokens is None:
                use.tokens = TokenBucket(allowed, now_s)
            use.tokens.allow(allowed, now_s)
            wait_s = use.tokens.wait_s(1, now_s)
        if wait_s > 0:
            raise _exceeded("tokens_per_minute", f"all of them used, the next in {wait_s:.1f} s", allowed, wait_s)

    def charge_tokens(self, tenant: str | None, n_tokens: int) -> None:
        """Take tokens that were used, from a tenant whose tokens are limited."""
        if tenant is None:
            return
        with self._lock:
            use = self._uses.get(tenant)
            if use is not None and use.tokens is not None:
                use.tokens.take(n_tokens, self._clock())

    def _enter(self, tenant: str, quota: Quota) -> None:
        with self._lock:
            use, now_s = self._use(tenant), self._clock()
            most, allowed = quota.concurrent_requests, quota.requests_per_minute
            if most is not None and use.n_running >= most:
                raise _exceeded("concurrent_requests", f"{use.n_running} running", most, 1)
            if allowed is not None:
                if use.requests is None:
                    use.requests = TokenBucket(allowed, now_s)
                use.requests.allow(allowed, now_s)
                wait_s = use.requests.wait_s(1, now_s)
                if wait_s > 0:
                    raise _exceeded("requests_per_minute", f"one more, the next in {wait_s:.1f} s", allowed, wait_s)
                use.requests.take(1, now_s)
            use.n_running += 1

    def _use(self, tenant: str) -> _Use:
        """Under the lock. Sweeps when the table has doubled since, so that its cost is spread."""
        if tenant not in self._uses and len(self._uses) >= self._n_before_sweep:
            now_s = self._clock()
            self._uses = {name: use for name, use in self._uses.items() if not use.is_idle(now_s)}
            self._n_before_sweep = max(_N_TENANTS_BEFORE_SWEEP, 2 * len(self._uses))
        return self._uses.setdefault(tenant, _Use())


def _exceeded(quota: str, found: str, allowed: int, wait_s: float) -> QuotaExceeded:
    retry_after_s = max(1, math.ceil(min(wait_s, _MINUTE_S * 60)))  # an allowance of 0: it can only be raised
    return QuotaExceeded(quota, found=found, allowed=allowed, retry_after_s=retry_after_s)
