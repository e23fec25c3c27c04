"""Blocks that earlier sequences have filled, for later ones that begin alike. Host side only: no torch."""

from onebasis.engine.block_keys import BlockKey, next_key, root_key
from onebasis.engine.block_pool import BlockPool
from onebasis.engine.sequence import EngineSequence


class PrefixCache:
    """Names blocks of the pool as they fill, and finds them. Holds no state of its own. Engine thread only.

    Args:
        base, basis: fingerprint of the base weights, digest of the basis or None; they are part of every key.
    """

    def __init__(self, pool: BlockPool, *, base: str, basis: str | None) -> None:
        self._pool = pool
        self._base = base
        self._basis = basis

    def find(self, sequence: EngineSequence) -> list[int]:
        """Blocks that hold the sequence's first tokens already: whole ones, and never its last token, whose logits
        are to be computed. None for a request that needs the logits of its prompt.
        """
        if sequence.request.needs_prompt_logits:
            return []
        return self._pool.find(self._keys(sequence, (sequence.n_tokens - 1) // self._pool.block_size))

    def record(self, sequence: EngineSequence, start: int, end: int) -> None:
        """Tokens `start` to `end` of the sequence are in the cache now: name the blocks that this made full."""
        first, n_full = start // self._pool.block_size, end // self._pool.block_size
        if first < n_full:
            keys = self._keys(sequence, n_full)
            for i in range(first, n_full):
                self._pool.name(sequence.blocks[i], keys[i])

    def _keys(self, sequence: EngineSequence, n_blocks: int) -> list[BlockKey]:
        """Keys of the sequence's first blocks. They are kept with it: its tokens never change."""
        keys, size = sequence.block_keys, self._pool.block_size
        while len(keys) < n_blocks:
            parent = keys[-1] if keys else self._root(sequence)
            keys.append(next_key(parent, sequence.tokens(len(keys) * size, (len(keys) + 1) * size)))
        return keys[:n_blocks]

    def _root(self, sequence: EngineSequence) -> BlockKey:
        task = sequence.request.task
        return root_key(
            base=self._base, basis=self._basis, coefficients=None if task is None else task.coefficients.digest
        )
