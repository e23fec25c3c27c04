"""Which blocks of the KV cache are free. Host side only: no torch."""

from collections.abc import Iterable


class BlockPool:
    """Invariant: each block is either in `_free` or was handed out once and not given back. Engine thread only."""

    def __init__(self, n_blocks: int, block_size: int) -> None:
        self.n_blocks = n_blocks
        self.block_size = block_size
        self._free = list(range(n_blocks - 1, -1, -1))

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return 1.0 - len(self._free) / self.n_blocks

    def n_needed(self, n_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-n_tokens // self.block_size)

    def take(self, n: int) -> list[int]:
        """Hand out n blocks. Raises ValueError when fewer are free; then none is taken."""
        if n > len(self._free):
            raise ValueError(f"needed {n} blocks, {len(self._free)} are free")
        return [self._free.pop() for _ in range(n)]

    def give_back(self, blocks: Iterable[int]) -> None:
        """Make blocks free again."""
        self._free.extend(blocks)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Raise AssertionError unless the free blocks and those that `owned` lists are all blocks, each once."""
        if sorted([*self._free, *owned]) != list(range(self.n_blocks)):
            raise AssertionError("blocks lost or doubled")
