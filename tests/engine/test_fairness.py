import random

import pytest

from onebasis.engine.fairness import FairShares


def turns(shares, costs, n):
    """The next n clients, each charged when its turn comes."""
    found = []
    for _ in range(n):
        client = shares.first()
        shares.charge(client, costs[client])
        shares.check_integrity()
        found.append(client)
    return found


def waiting(*clients):
    shares = FairShares()
    for client in clients:
        shares.join(client)
    return shares


def test_turns_follow_what_was_served():
    assert turns(waiting("a", "b"), {"a": 30, "b": 10}, 8) == ["a", "b", "b", "b", "a", "b", "b", "b"]


def test_of_equals_the_one_that_waits_longer_is_first():
    shares = waiting("b", "a", "c")
    assert turns(shares, dict.fromkeys("abc", 5), 6) == ["b", "a", "c", "b", "a", "c"]


def test_debt_is_what_the_most_served_of_those_who_wait_had_more():
    shares = waiting("a", "b", "c")
    for client, cost in (("a", 30), ("b", 5), ("gone", 100)):
        shares.charge(client, cost)
    assert shares.debts() == {"a": 0, "b": 25, "c": 30}
    shares.leave("a")
    assert shares.debts() == {"b": 0, "c": 5}


def test_who_comes_late_has_saved_nothing_up():
    shares = waiting("a", "b")
    turns(shares, {"a": 10, "b": 10}, 20)
    shares.join("late")
    assert turns(shares, {"a": 10, "b": 10, "late": 10}, 6).count("late") == 2


def test_who_comes_back_is_in_debt_still():
    shares = waiting("a", "b")
    shares.charge("a", 100)
    shares.leave("a")
    shares.join("a")
    assert turns(shares, {"a": 10, "b": 10}, 12) == ["b"] * 11 + ["a"]


def test_service_to_a_client_that_does_not_wait_counts_too():
    shares = waiting("a")
    shares.charge("runs", 50)
    shares.join("runs")
    assert turns(shares, {"a": 10, "runs": 10}, 7) == ["a"] * 6 + ["runs"]


def test_nobody_waits():
    shares = waiting("a")
    shares.leave("a")
    assert shares.n_waiting == 0
    with pytest.raises(IndexError):
        shares.first()


def test_clients_who_are_gone_are_forgotten():
    shares = waiting("stays")
    for i in range(20_000):
        shares.join(f"passes-{i}")
        shares.charge(f"passes-{i}", 3)
        shares.charge("stays", 3)
        shares.leave(f"passes-{i}")
    assert len(shares._counters) + len(shares._heap) < 2000
    shares.check_integrity()


def test_two_that_always_wait_never_get_far_apart():
    """Theorem 4.4 of the paper, with turns of at most 100: whatever the sizes and whoever else comes and goes."""
    rng = random.Random(0)
    shares, served, others = waiting("a", "b"), {"a": 0, "b": 0}, set()
    for _ in range(20_000):
        name = rng.randrange(50)
        if name in others:
            others.remove(name)
            shares.leave(name)
        elif rng.random() < 0.5:
            others.add(name)
            shares.join(name)
        client = shares.first()
        cost = rng.randint(1, 100) if client == "a" else rng.randint(1, 7)
        shares.charge(client, cost)
        if client in served:
            served[client] += cost
            assert abs(served["a"] - served["b"]) <= 100
    assert min(served.values()) > 3000
