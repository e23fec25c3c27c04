"""Which blocks of the KV cache are free, which are shared, and which are worth finding again. Host side: no torch."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable

from onebasis.engine.block_keys import BlockKey


class BlockPool:
    """A free block whose contents have a key stays findable until it is handed out anew, the longest idle first.

    Invariant: each block is in exactly one of `_empty` (free), `_idle` (free, with a key) and `_n_users`; a key names
    one block, and a block has at most one key. Engine thread only.
    """

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self._empty = list(range(n_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest idle first
        self._n_users: dict[int, int] = {}
        self._key_of: dict[int, BlockKey] = {}
        self._block_of: dict[BlockKey, int] = {}

    @property
    def n_free(self) -> int:
        return len(self._empty) + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1. An idle block is not in use."""
        return 1.0 - self.n_free / self.n_blocks

    def n_needed(self, n_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-n_tokens // self.block_size)

    def n_free_beside(self, shared: Collection[int]) -> int:
        """Free blocks that are left when `shared` are in use."""
        return self.n_free - sum(block in self._idle for block in shared)

    def n_freed(self, users: Iterable[Collection[int]], beside: Collection[int]) -> int:
        """Blocks that become free when these users give theirs back, those in `beside` not counted."""
        n_leaving = Counter(block for blocks in users for block in blocks)
        return sum(n == self._n_users[block] for block, n in n_leaving.items() if block not in beside)

    def take(self, n: int) -> list[int]:
        """Hand out n blocks to write to. Raises ValueError when fewer are free; then none is taken."""
        if n > self.n_free:
            raise ValueError(f"needed {n} blocks, {self.n_free} are free")
        blocks = [self._empty.pop() if self._empty else self._evict() for _ in range(n)]
        self._n_users.update(dict.fromkeys(blocks, 1))
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Hand out blocks that have a key to one more user, who only reads them."""
        for block in blocks:
            self._idle.pop(block, None)
            self._n_users[block] = self._n_users.get(block, 0) + 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One user less for each. The last block goes idle first: a prefix is worth nothing without its beginning."""
        for block in reversed(list(blocks)):
            self._n_users[block] -= 1
            if self._n_users[block] > 0:
                continue
            del self._n_users[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._empty.append(block)

    def name(self, block: int, key: BlockKey) -> None:
        """Make a block in use findable; from now on nobody writes to it. Of two with equal contents the first is."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """Blocks of the longest known beginning of `keys`."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Raise AssertionError unless `owned` lists each block in use once per user and the invariant holds."""
        if Counter(owned) != self._n_users or sorted([*self._empty, *self._idle, *self._n_users]) != list(
            range(self.n_blocks)
        ):
            raise AssertionError("blocks lost or doubled")
        if {block: key for key, block in self._block_of.items()} != self._key_of:
            raise AssertionError("a key names two blocks, or a block has two keys")
        if not self._idle.keys() <= self._key_of.keys() or not self._key_of.keys().isdisjoint(self._empty):
            raise AssertionError("a block is idle without a key, or has one and is empty")

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
