"""Attention of a mixed batch over the paged KV cache, in the form that transformers' layers call, for any device.

A step is computed in two ways at once: all single-token sequences as one padded batch, each prefill chunk alone.
In the padded batch, query heads that share a key head are folded into the query axis: no key is repeated.
"""

from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.core.errors import InvalidModel
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk
from onebasis.model.kv_cache import KVCache

ATTENTION_NAME = "onebasis_paged"
_NOT_OURS: Final = ("position_ids", "use_cache", "output_router_logits")  # handed down to everybody; for others
_NO_EFFECT: Final = {"dropout": 0.0, "is_causal": True}  # what they ask for is done in any case


class AttentionStep(Protocol):
    """One step's batch with the cache it runs on."""

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
        """Write the step's keys and values to the layer's cache, then attend.

        Args:
            query: [n_tokens, n_heads, head_dim]; key, value: [n_tokens, n_kv_heads, head_dim].
            window: how many tokens back a token may see, its own included; None for all.
            softcap: scores are softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118); None for plain scores.

        Returns:
            [n_tokens, n_heads, head_dim].
        """
        ...


class GatherStep:
    """Copies each sequence's keys together, for torch's own attention. Layers share masks, one per window size."""

    def __init__(self, batch: ForwardBatch, cache: KVCache) -> None:
        self._batch = batch
        self._cache = cache
        self._decode_rows: Tensor | None = None
        self._decode_masks: dict[int | None, Tensor] = {}
        self._chunk_masks: dict[tuple[int, int | None], Tensor] = {}

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
        """As `AttentionStep.attend`."""
        batch, cache = self._batch, self._cache
        cache.write(layer, batch.kv_rows, key, value)
        out = torch.empty_like(query)
        if batch.decodes is not None:
            n_seqs = batch.decodes.n_seqs
            keys, values = cache.read_rows(layer, self._rows(batch.decodes))
            mask = self._decode_mask(batch.decodes, window)
            out[:n_seqs] = _attend(query[:n_seqs].unsqueeze(1), keys, values, mask, scaling, softcap).squeeze(1)
        for chunk in batch.chunks:
            keys, values = cache.read(layer, chunk.block_table)
            mask = self._chunk_mask(chunk, window)
            rows = slice(chunk.start, chunk.end)
            kv = slice(0, chunk.kv_length)
            out[rows] = _attend(query[None, rows], keys[None, kv], values[None, kv], mask, scaling, softcap)[0]
        return out

    def _rows(self, group: DecodeGroup) -> Tensor:
        """[n_seqs, n_kv] rows of the cache. Past a sequence's end its own last row: a masked number still counts if
        it is not finite (0 * NaN is NaN), so it must be nobody else's.
        """
        if self._decode_rows is None:
            block_size = self._cache.block_size
            n_kv = group.block_tables.shape[1] * block_size
            columns = torch.arange(n_kv, device=group.kv_lengths.device).minimum(group.kv_lengths.unsqueeze(1) - 1)
            blocks = group.block_tables.gather(1, columns // block_size)
            self._decode_rows = blocks * block_size + columns % block_size
        return self._decode_rows

    def _decode_mask(self, group: DecodeGroup, window: int | None) -> Tensor:
        """[n_seqs, 1, 1, n_kv] bool, True where a sequence's token may look."""
        if window not in self._decode_masks:
            n_kv = group.block_tables.shape[1] * self._cache.block_size
            columns = torch.arange(n_kv, device=group.kv_lengths.device)
            last = group.kv_lengths.unsqueeze(1) - 1
            self._decode_masks[window] = _visible(last, columns, window)[:, None, None]
        return self._decode_masks[window]

    def _chunk_mask(self, chunk: PrefillChunk, window: int | None) -> Tensor:
        """[n_queries, n_kv] bool, True where a token of the chunk may look."""
        key = (chunk.start, window)
        if key not in self._chunk_masks:
            n_queries = chunk.end - chunk.start
            columns = torch.arange(chunk.kv_length, device=chunk.block_table.device)
            self._chunk_masks[key] = _visible(columns[-n_queries:].unsqueeze(1), columns, window)
        return self._chunk_masks[key]


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    paged_step: AttentionStep,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [1, n_heads, n_tokens, head_dim]; key, value [1, n_kv_heads, n_tokens, head_dim].

    Returns:
        [1, n_tokens, n_heads, head_dim], and no weights.

    Raises:
        InvalidModel: the layer asks for anything else. Nothing is left out in silence.
    """
    _refuse_others({"attention_mask": attention_mask} | others)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    flat = [part[0].transpose(0, 1) for part in (query, key, value)]
    out = paged_step.attend(layer, *flat, scaling=scaling, window=sliding_window, softcap=softcap)
    return out.unsqueeze(0), None


def _refuse_others(others: dict[str, Any]) -> None:
    unknown = [
        name
        for name, value in others.items()
        if value is not None and name not in _NOT_OURS and not (name in _NO_EFFECT and value == _NO_EFFECT[name])
    ]
    if unknown:
        raise InvalidModel(
            f"the model's attention asks for {', '.join(unknown)}; this server computes sliding windows and "
            f"soft-capped scores alone: use engine=vllm if it knows the model, or a model of another family"
        )


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """q [n_seqs, n_queries, n_heads, dim], k and v [n_seqs, n_kv, n_kv_heads, dim] -> like q."""
    n_seqs, n_queries, n_heads, dim = q.shape
    n_kv_heads = k.shape[2]
    group = n_heads // n_kv_heads
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if n_queries == 1:  # [n_seqs, n_kv_heads, group, dim]: one mask row serves the whole group
        folded = q.view(n_seqs, n_kv_heads, group, dim)
        return _scores(folded, k, v, mask, scaling, softcap).reshape(n_seqs, 1, n_heads, dim)
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return _scores(q.transpose(1, 2), k, v, mask, scaling, softcap).transpose(1, 2)


def _scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    scores = softcap * torch.tanh((q @ k.transpose(-1, -2)) * scaling / softcap)
    weights = scores.float().masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return weights.to(v.dtype) @ v


def _visible(rows: Tensor, columns: Tensor, window: int | None) -> Tensor:
    """Causal, and no further back than the window. rows [n, 1] and columns [n_kv] are positions."""
    causal = columns <= rows
    return causal if window is None else causal & (columns > rows - window)
