"""Attention of a mixed batch on a GPU: PyTorch's flex_attention reads the blocks of the cache where they lie.

Nothing is gathered: a block mask names, for each sequence, the blocks to visit, and a mask function says which of their
tokens may be seen. (The method of torch.nn.attention.experimental's PagedAttention; blocks may be shared here.)
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from onebasis.kernels import triton_batched
from onebasis.model.attention import AttentionStep, GatherStep
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk
from onebasis.model.kv_cache import KVCache

MakeStep = Callable[[ForwardBatch, KVCache], AttentionStep]
FlexAttention = Callable[..., Any]
"""torch.nn.attention.flex_attention.flex_attention, compiled or not."""

_QUERY_TILE: Final = 128  # queries that share a row of the block mask
_KEY_TILE: Final = 64  # most keys that a kernel takes at once; they must not reach over the end of a block
_LEAST_KEY_TILE: Final = 16
_MAX_COMPILED: Final = 64  # shapes of a kind share a kernel; past this number flex_attention would run uncompiled


def attention_for(device: torch.device, block_size: int) -> MakeStep:
    """flex_attention on a GPU with triton, a recent torch and blocks of 16 tokens or a multiple; else gathering."""
    fits = block_size % _LEAST_KEY_TILE == 0 and torch.__version__ >= "2.13"
    if device.type == "cuda" and triton_batched.is_available() and fits:
        compiled = torch.compile(  # type: ignore[call-overload]
            flex_attention, dynamic=True, fullgraph=True, recompile_limit=_MAX_COMPILED
        )
        return partial(FlexStep, flex=compiled)
    return GatherStep


class FlexStep:
    """One step's batch with the cache it runs on, and the masks its layers share (one per window size).

    Reads no number back from the device, so that a CUDA graph can hold the step.

    Args:
        flex: uncompiled, it computes all scores against the whole cache: for tests.
    """

    def __init__(self, batch: ForwardBatch, cache: KVCache, flex: FlexAttention) -> None:
        self._batch = batch
        self._cache = cache
        self._flex = flex
        decodes = [] if batch.decodes is None else [_decode_part(batch.decodes)]
        self._parts = [*decodes, *map(_chunk_part, batch.chunks)]
        self._masks: dict[int | None, list[BlockMask]] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """As `AttentionStep.attend`. Values are made finite as they are written: a masked one still counts (0 * NaN is
        NaN), so that blocks could carry one task's overflow to the next sequence that gets them.
        """
        self._cache.write(layer, self._batch.kv_rows, key, value.nan_to_num())
        keys, values = self._cache.by_head(layer)
        out = torch.empty_like(query)
        for part, mask in zip(self._parts, self._block_masks(window), strict=True):
            q = query[part.rows].view(part.n_seqs, part.n_queries, *query.shape[1:]).transpose(1, 2)
            answer = self._flex(
                q,
                keys,
                values,
                score_mod=None if softcap is None else _soft_capped(softcap),
                block_mask=mask,
                scale=scaling,
                enable_gqa=True,
                kernel_options={"BLOCK_N": gcd(self._cache.block_size, _KEY_TILE)},
            )
            out[part.rows] = answer.transpose(1, 2).flatten(0, 1)
        return out

    def _block_masks(self, window: int | None) -> list[BlockMask]:
        if window not in self._masks:
            self._masks[window] = [part.block_mask(self._cache, window) for part in self._parts]
        return self._masks[window]


class _Part:
    """Sequences of one step with equally many queries.

    Args:
        rows: their tokens in the batch, sequence by sequence.
        block_tables: [n_seqs, n_blocks], any block past a sequence's end. starts: [n_seqs] positions of their first
            queries.
    """

    def __init__(self, rows: slice, block_tables: Tensor, starts: Tensor) -> None:
        self.rows = rows
        self.n_seqs = block_tables.shape[0]
        self.n_queries = (rows.stop - rows.start) // self.n_seqs
        self._block_tables = block_tables
        self._starts = starts

    def block_mask(self, cache: KVCache, window: int | None) -> BlockMask:
        """For queries [n_seqs, n_heads, n_queries, dim] against the whole cache as one sequence of keys."""
        tables, block_size = self._block_tables, cache.block_size
        width = tables.shape[1]
        first_queries = torch.arange(0, self.n_queries, _QUERY_TILE, device=tables.device)
        last_queries = (first_queries + _QUERY_TILE).clamp(max=self.n_queries) - 1
        starts = self._starts.unsqueeze(1)
        end_columns = (starts + last_queries) // block_size + 1
        first_columns = torch.zeros_like(end_columns)
        if window is not None:
            first_columns = (starts + first_queries - window + 1).clamp(min=0) // block_size
        columns = first_columns.unsqueeze(2) + torch.arange(width, device=tables.device)
        visited = tables.gather(1, columns.clamp(max=width - 1).flatten(1)).view(columns.shape)
        return BlockMask.from_kv_blocks(
            (end_columns - first_columns).int().unsqueeze(1),
            visited.int().unsqueeze(1),
            BLOCK_SIZE=(_QUERY_TILE, block_size),
            mask_mod=self._mask_function(cache, end_columns[:, -1:], window),
            seq_lengths=(self.n_queries, cache.n_rows),
            compute_q_blocks=False,
        )

    def _mask_function(self, cache: KVCache, n_columns: Tensor, window: int | None) -> Callable[..., Tensor]:
        """Whether query `query` of sequence `seq` may see the token in row `row` of the cache. n_columns [n_seqs, 1]:
        blocks in use; the columns behind them name blocks of anybody.
        """
        tables, starts, block_size = self._block_tables, self._starts, cache.block_size
        columns = torch.arange(tables.shape[1], device=tables.device).expand_as(tables)
        n_blocks = cache.n_rows // block_size
        known = torch.where(columns < n_columns, tables, n_blocks)
        column_of = columns.new_zeros(n_blocks + 1).scatter_(0, known.flatten(), columns.flatten())

        def may_see(seq: Tensor, _head: Tensor, query: Tensor, row: Tensor) -> Tensor:
            block = row // block_size
            column = column_of[block]
            position = column * block_size + row % block_size
            now = starts[seq] + query
            seen = (tables[seq, column] == block) & (position <= now)
            return seen if window is None else seen & (position > now - window)

        return may_see


def _decode_part(group: DecodeGroup) -> _Part:
    return _Part(slice(0, group.n_seqs), group.block_tables, group.kv_lengths - 1)


def _chunk_part(chunk: PrefillChunk) -> _Part:
    start = chunk.kv_length - (chunk.end - chunk.start)
    starts = torch.full((1,), start, dtype=torch.int64, device=chunk.block_table.device)
    return _Part(slice(chunk.start, chunk.end), chunk.block_table.unsqueeze(0), starts)


def _soft_capped(softcap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, _seq: Tensor, _head: Tensor, _query: Tensor, _row: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod
