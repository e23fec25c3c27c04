from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onebasis.coefficients.slots import NoFreeSlot, SlotGrant, SlotTable
from onebasis.core.ids import Digest


def test_each_digest_gets_its_own_slot_once():
    table = SlotTable(2)
    assert table.acquire("a") == SlotGrant(slot=0, evicted=None, is_new=True)
    assert table.acquire("b") == SlotGrant(slot=1, evicted=None, is_new=True)
    assert table.acquire("a") == SlotGrant(slot=0, evicted=None, is_new=False)
    assert table.n_resident == 2


def test_a_released_digest_stays_until_its_slot_is_needed():
    table = SlotTable(1)
    table.acquire("a")
    table.release("a")
    assert table.is_resident("a")
    assert table.acquire("a") == SlotGrant(slot=0, evicted=None, is_new=False)
    table.release("a")
    assert table.acquire("b") == SlotGrant(slot=0, evicted="a", is_new=True)
    assert not table.is_resident("a")


def test_the_least_recently_used_goes_first():
    table = SlotTable(3)
    for digest in "abc":
        table.acquire(digest)
    for digest in "bca":
        table.release(digest)
    table.acquire("b")
    table.release("b")
    assert [table.acquire(digest).evicted for digest in "xyz"] == ["c", "a", "b"]


def test_a_pinned_slot_is_never_taken_and_a_refusal_changes_nothing():
    table = SlotTable(1)
    table.acquire("a")
    table.acquire("a")
    table.release("a")
    with pytest.raises(NoFreeSlot, match="all 1 slots are pinned"):
        table.acquire("b")
    table.check_integrity()
    assert table.is_resident("a")
    assert not table.is_resident("b")
    table.release("a")
    assert table.acquire("b").evicted == "a"


def test_release_without_acquire_is_a_bug_of_the_caller():
    table = SlotTable(1)
    with pytest.raises(KeyError):
        table.release("a")
    table.acquire("a")
    table.release("a")
    with pytest.raises(KeyError):
        table.release("a")
    table.check_integrity()


def test_a_table_without_slots_has_none_to_give():
    with pytest.raises(NoFreeSlot):
        SlotTable(0).acquire("a")


@pytest.mark.parametrize("damage", ["_free", "_slot_of", "_n_pins", "_idle"])
def test_the_integrity_check_sees_damage(damage):
    table = SlotTable(3)
    table.acquire("a")
    table.acquire("b")
    table.release("b")
    table.check_integrity()
    getattr(table, damage).clear()
    with pytest.raises(AssertionError):
        table.check_integrity()


class SlotMachine(RuleBasedStateMachine):
    """Random calls beside a model: a list of residents by last use, and a count of pins."""

    def __init__(self):
        super().__init__()
        self.n_slots = 3
        self.table = SlotTable(self.n_slots)
        self.slot_of: dict[Digest, int] = {}
        self.by_use: list[Digest] = []
        self.pins: Counter[Digest] = Counter()

    @rule(digest=st.sampled_from("abcdef"))
    def acquire(self, digest):
        victims = [d for d in self.by_use if not self.pins[d]]
        is_new = digest not in self.by_use
        is_full = len(self.by_use) == self.n_slots
        if is_new and is_full and not victims:
            with pytest.raises(NoFreeSlot):
                self.table.acquire(digest)
            return
        grant = self.table.acquire(digest)
        evicted = victims[0] if is_new and is_full else None
        assert (grant.is_new, grant.evicted) == (is_new, evicted)
        assert grant.slot == self.slot_of.get(digest, grant.slot), "a resident never moves"
        if evicted is not None:
            self.by_use.remove(evicted)
            assert self.slot_of.pop(evicted) == grant.slot
        assert grant.slot not in [slot for d, slot in self.slot_of.items() if d != digest]
        self.slot_of[digest] = grant.slot
        self._used(digest)
        self.pins[digest] += 1

    @precondition(lambda self: self.pins.total())
    @rule(data=st.data())
    def release(self, data):
        digest = data.draw(st.sampled_from(sorted(self.pins.elements())))
        self.table.release(digest)
        self.pins[digest] -= 1
        self._used(digest)

    @invariant()
    def agrees_with_the_model(self):
        self.table.check_integrity()
        assert self.table.n_resident == len(self.by_use)
        assert all(self.table.is_resident(d) == (d in self.by_use) for d in "abcdef")

    def _used(self, digest):
        self.by_use = [d for d in self.by_use if d != digest] + [digest]


TestSlotMachine = SlotMachine.TestCase
