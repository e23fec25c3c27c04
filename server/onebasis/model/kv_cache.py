"""Keys and values of all running sequences, in blocks. The block pool says whose block is whose; here are numbers."""

from typing import Any

import torch
from torch import Tensor

from onebasis.kernels.memory import zeros_on_demand


class KVCache:
    """One [n_blocks + 1, block_size, n_kv_heads, head_dim] tensor for keys and one for values per layer.

    The last block is no sequence's: rows that only fill up a batch write there.
    Memory is claimed from the system as blocks are first written. Engine thread only.
    """

    def __init__(
        self, text_config: Any, *, n_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        n_kv_heads, head_dim = head_shape(text_config)
        shape = (n_blocks + 1, block_size, n_kv_heads, head_dim)
        n_layers = text_config.num_hidden_layers
        self.block_size = block_size
        self.n_rows = (n_blocks + 1) * block_size
        self.scratch_block = n_blocks
        self._keys = [zeros_on_demand(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self._values = [zeros_on_demand(shape, dtype=dtype, device=device) for _ in range(n_layers)]

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n_tokens, n_kv_heads, head_dim] at `rows` [n_tokens] int64."""
        self._keys[layer].flatten(0, 1).index_copy_(0, rows, keys)
        self._values[layer].flatten(0, 1).index_copy_(0, rows, values)

    def read(self, layer: int, block_tables: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks: tables [..., n_blocks] give [..., n_blocks * block_size, heads, dim]."""
        return self._gather(self._keys[layer], block_tables), self._gather(self._values[layer], block_tables)

    def read_rows(self, layer: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of single tokens: rows [n_seqs, n_kv] give [n_seqs, n_kv, heads, dim]."""
        return self._gather_rows(self._keys[layer], rows), self._gather_rows(self._values[layer], rows)

    def by_head(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of all keys and all values, [1, n_kv_heads, n_rows, head_dim]; row = block * block_size + offset."""
        keys, values = self._keys[layer], self._values[layer]
        return keys.flatten(0, 1).transpose(0, 1)[None], values.flatten(0, 1).transpose(0, 1)[None]

    @staticmethod
    def block_bytes(text_config: Any, *, block_size: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers, keys and values."""
        n_kv_heads, head_dim = head_shape(text_config)
        per_token = 2 * int(text_config.num_hidden_layers) * n_kv_heads * head_dim
        return per_token * block_size * dtype.itemsize

    def _gather(self, cache: Tensor, block_tables: Tensor) -> Tensor:
        blocks = cache.index_select(0, block_tables.flatten())
        tokens = block_tables.shape[-1] * self.block_size
        return blocks.view(*block_tables.shape[:-1], tokens, *cache.shape[2:])

    def _gather_rows(self, cache: Tensor, rows: Tensor) -> Tensor:
        return cache.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, *cache.shape[2:])


def head_shape(text_config: Any) -> tuple[int, int]:
    """(n_kv_heads, head_dim) of a transformers configuration."""
    n_heads = int(text_config.num_attention_heads)
    head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // n_heads
    return int(getattr(text_config, "num_key_value_heads", None) or n_heads), int(head_dim)
