"""Rates per tenant, on a clock that the test moves."""

import pytest

from onebasis.identity import rates
from onebasis.identity.errors import QuotaExceeded
from onebasis.identity.quota import UNLIMITED, Quota
from onebasis.identity.rates import RateLimits
from tests.identity.builders import Clock

TEN_REQUESTS = Quota(requests_per_minute=10)
TOKENS = Quota(tokens_per_minute=600)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limits(clock):
    return RateLimits(clock)


def ask(limits, quota, tenant="acme") -> None:
    with limits.request(tenant, quota):
        pass


def refusal(limits, quota, tenant="acme") -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refused:
        ask(limits, quota, tenant)
    return refused.value


def token_refusal(limits, quota=TOKENS) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refused:
        limits.check_tokens("acme", quota)
    return refused.value


def test_a_minutes_requests_may_come_at_once_and_the_next_waits(limits, clock):
    for _ in range(10):
        ask(limits, TEN_REQUESTS)
    error = refusal(limits, TEN_REQUESTS)
    assert error.retry_after_s == 6
    assert str(error).startswith("quota requests_per_minute: found one more, the next in 6.0 s, allowed 10")
    clock.now_s += 5.9
    refusal(limits, TEN_REQUESTS)
    clock.now_s += 0.2
    ask(limits, TEN_REQUESTS)
    refusal(limits, TEN_REQUESTS)


def test_no_more_is_saved_up_than_a_minutes_requests(limits, clock):
    clock.now_s += 3600
    for _ in range(10):
        ask(limits, TEN_REQUESTS)
    clock.now_s += 3600
    for _ in range(10):
        ask(limits, TEN_REQUESTS)
    refusal(limits, TEN_REQUESTS)


def test_one_tenants_use_is_not_anothers(limits):
    quota = Quota(requests_per_minute=1, concurrent_requests=1)
    with limits.request("acme", quota), limits.request("zeta", quota):
        assert "concurrent_requests" in str(refusal(limits, quota, "acme"))


def test_the_operator_is_not_limited(limits):
    for _ in range(100):
        ask(limits, Quota(requests_per_minute=1, concurrent_requests=0), tenant=None)
    limits.charge_tokens(None, 10**9)
    limits.check_tokens(None, Quota(tokens_per_minute=1))


def test_no_limit_is_no_limit(limits):
    for _ in range(1000):
        ask(limits, UNLIMITED)
    limits.charge_tokens("acme", 10**9)
    limits.check_tokens("acme", UNLIMITED)


def test_requests_at_once_are_counted_until_they_end_however_they_end(limits):
    quota = Quota(concurrent_requests=2)
    with limits.request("acme", quota):
        with pytest.raises(KeyError), limits.request("acme", quota):
            error = refusal(limits, quota)
            raise KeyError
        assert (error.retry_after_s, "2 running, allowed 2" in str(error)) == (1, True)
        ask(limits, quota)
    ask(limits, quota)


def test_a_refused_request_costs_nothing(limits, clock):
    quota = Quota(requests_per_minute=1, concurrent_requests=1)
    with limits.request("acme", quota):
        for _ in range(5):
            refusal(limits, quota)
    clock.now_s += 60
    ask(limits, quota)


def test_a_lowered_allowance_counts_at_once_and_a_raised_one_from_then_on(limits, clock):
    ask(limits, TEN_REQUESTS)
    lower = Quota(requests_per_minute=2)
    ask(limits, lower)
    ask(limits, lower)
    refusal(limits, lower)
    assert refusal(limits, Quota(requests_per_minute=60)).retry_after_s == 1
    clock.now_s += 1
    ask(limits, Quota(requests_per_minute=60))


def test_an_allowance_of_nothing_is_refused_for_an_hour(limits):
    assert refusal(limits, Quota(requests_per_minute=0)).retry_after_s == 3600


def test_tokens_are_paid_afterwards_and_a_debt_by_waiting(limits, clock):
    limits.check_tokens("acme", TOKENS)
    limits.charge_tokens("acme", 599)
    limits.check_tokens("acme", TOKENS)
    limits.charge_tokens("acme", 1201)
    error = token_refusal(limits)
    assert error.retry_after_s == 121, "1200 tokens of debt and one to use, at 10 a second"
    clock.now_s += 120
    token_refusal(limits)
    clock.now_s += 0.2
    limits.check_tokens("acme", TOKENS)


def test_tenants_that_are_idle_with_full_buckets_are_forgotten_and_no_other(limits, clock, monkeypatch):
    monkeypatch.setattr(limits, "_n_before_sweep", 4)
    monkeypatch.setattr(rates, "_N_TENANTS_BEFORE_SWEEP", 4)
    with limits.request("running", UNLIMITED):
        limits.check_tokens("indebted", TOKENS)
        limits.charge_tokens("indebted", 60_000)
        for n in range(100):
            clock.now_s += 10
            ask(limits, TEN_REQUESTS, tenant=f"tenant-{n}")
            assert len(limits._uses) <= 8
    with pytest.raises(QuotaExceeded):
        limits.check_tokens("indebted", Quota(tokens_per_minute=1))
