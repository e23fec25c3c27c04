"""Which file owns which row of the device arena. Host side only: no torch, so its tests take milliseconds."""

from collections import OrderedDict
from dataclasses import dataclass

from onebasis.core.ids import Digest


class NoFreeSlot(Exception):
    """Every slot is pinned by a running request; the caller waits until one ends. Never leaves the engine."""

    def __init__(self, n_slots: int) -> None:
        super().__init__(f"all {n_slots} slots are pinned")


@dataclass(frozen=True, slots=True)
class SlotGrant:
    """A pinned slot. If `is_new`, the caller must fill the row; `evicted` is whose numbers it held before."""

    slot: int
    evicted: Digest | None
    is_new: bool


class SlotTable:
    """Residents are kept when nobody uses them, until their slot is needed: least recently used goes first.

    Invariant: each slot is free or owned by one digest; each owner is either pinned at least once or idle.
    Engine thread only, between steps.
    """

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._free = list(reversed(range(n_slots)))
        self._slot_of: dict[Digest, int] = {}
        self._n_pins: dict[Digest, int] = {}
        self._idle: OrderedDict[Digest, None] = OrderedDict()  # least recently used first

    @property
    def n_resident(self) -> int:
        return len(self._slot_of)

    def is_resident(self, digest: Digest) -> bool:
        return digest in self._slot_of

    def acquire(self, digest: Digest) -> SlotGrant:
        """Pin the slot of `digest`, giving it one if it has none. Each acquire needs its own release.

        Raises:
            NoFreeSlot: it is not resident and every slot is pinned; nothing has changed.
        """
        evicted = None
        is_new = digest not in self._slot_of
        if is_new:
            if not self._free:
                evicted = self._evict()
            self._slot_of[digest] = self._free.pop()
        self._idle.pop(digest, None)
        self._n_pins[digest] = self._n_pins.get(digest, 0) + 1
        return SlotGrant(self._slot_of[digest], evicted, is_new)

    def release(self, digest: Digest) -> None:
        """Undo one acquire. Raises KeyError if `digest` is not pinned."""
        self._n_pins[digest] -= 1
        if not self._n_pins[digest]:
            del self._n_pins[digest]
            self._idle[digest] = None

    def check_integrity(self) -> None:
        """Raise if the invariant is broken. Tests call it after every operation, the engine when idle."""
        if sorted([*self._free, *self._slot_of.values()]) != list(range(self._n_slots)):
            raise AssertionError(f"slots lost or doubled: free {self._free}, owned {self._slot_of}")
        if sorted([*self._n_pins, *self._idle]) != sorted(self._slot_of):
            raise AssertionError(f"pinned {self._n_pins} and idle {list(self._idle)} are not the residents")
        if any(count < 1 for count in self._n_pins.values()):
            raise AssertionError(f"pinned less than once: {self._n_pins}")

    def _evict(self) -> Digest:
        if not self._idle:
            raise NoFreeSlot(self._n_slots)
        digest, _ = self._idle.popitem(last=False)
        self._free.append(self._slot_of.pop(digest))
        return digest
