import pytest

from onebasis.core.errors import Draining, EngineStopped, QueueFull, TenantQueueFull
from onebasis.core.request import TokenEvent
from onebasis.engine import ledger as ledger_module
from onebasis.engine.ledger import Ledger, QueueLimits
from onebasis.engine.sequence import EngineSequence
from tests.engine.builders import make_request

LIMITS = QueueLimits(max_running=2, max_waiting=6, max_waiting_per_tenant=1)


def sequences(names, tenant=None, sink=None):
    options = {} if sink is None else {"sink": sink}
    return [EngineSequence(make_request(name, (1,), tenant=tenant, **options), arrived_s=0.0) for name in names.split()]


def test_a_tenant_fills_the_batch_and_its_share_of_the_queue_and_no_more():
    ledger = Ledger(LIMITS)
    first = sequences("a b c", "greedy")
    ledger.accept(first)
    with pytest.raises(TenantQueueFull, match="3 requests of your tenant"):
        ledger.accept(sequences("d", "greedy"))
    ledger.accept(sequences("e f g", "modest"))
    ledger.accept(sequences("h"))
    assert ledger.take(first[0])
    ledger.accept(sequences("i", "greedy"))
    assert ledger.n_open == 7


def test_a_refused_submit_leaves_nothing_behind():
    ledger = Ledger(LIMITS)
    with pytest.raises(TenantQueueFull):
        ledger.accept([*sequences("a b"), *sequences("c d e f", "greedy")])
    assert ledger.n_open == 0
    ledger.accept(sequences("c d e", "greedy"))


def test_requests_without_a_tenant_share_the_whole_queue():
    ledger = Ledger(LIMITS)
    ledger.accept(sequences("a b c d e f g h"))
    with pytest.raises(QueueFull, match="8 requests"):
        ledger.accept(sequences("i"))


def test_an_ending_can_be_taken_once_and_nothing_is_told_after_it():
    heard = []
    ledger = Ledger(LIMITS)
    [sequence] = sequences("a", sink=heard.append)
    event = TokenEvent("a", 1)
    ledger.accept([sequence])
    ledger.tell(sequence, event)
    assert (ledger.take(sequence), ledger.take(sequence)) == (True, False)
    ledger.tell(sequence, event)
    assert heard == [event]


def test_a_closed_ledger_hands_over_what_was_open_once_and_keeps_its_reason():
    ledger = Ledger(LIMITS)
    opened = sequences("a b", "t")
    ledger.accept(opened)
    assert ledger.close(Draining()) == opened
    assert ledger.close(EngineStopped()) == []
    assert not ledger.take(opened[0])
    with pytest.raises(Draining):
        ledger.accept(sequences("c"))


@pytest.mark.parametrize(
    ("n_endings", "s_between", "n_open", "expected_s"),
    [(0, 0.0, 8, 1), (1, 3.0, 8, 1), (5, 0.5, 8, 4), (5, 0.001, 8, 1), (5, 100.0, 8, 60)],
)
def test_retry_after_is_what_the_queue_takes_at_the_measured_rate(
    monkeypatch, n_endings, s_between, n_open, expected_s
):
    now = [1000.0]
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: now[0])
    ledger = Ledger(LIMITS)
    for i in range(n_endings):
        now[0] += s_between if i else 0
        [ended] = sequences(f"ended-{i}")
        ledger.accept([ended])
        ledger.take(ended)
    ledger.accept(sequences(" ".join(f"open-{i}" for i in range(n_open))))
    with pytest.raises(QueueFull) as refusal:
        ledger.accept(sequences("late"))
    assert refusal.value.retry_after_s == expected_s


def test_a_tenant_with_nothing_in_flight_is_not_remembered():
    ledger = Ledger(LIMITS)
    for i in range(50):
        [sequence] = sequences(f"r-{i}", f"tenant-{i}")
        ledger.accept([sequence])
        ledger.take(sequence)
    assert not ledger._n_by_tenant
