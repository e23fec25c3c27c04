"""Attention of packed examples, in the form that transformers' layers call: no token meets another example.

One masked attention over the whole sequence would cost the square of its length. Here each task's prefix attends to
itself, and the rests, padded to one length, attend to their prefix and to themselves.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from onebasis.fitting.packing import PackedBatch, Padding, start_rows
from onebasis.model.loader import LoadedBase

ATTENTION_NAME: Final = "onebasis_packed"


def attention_window(base: LoadedBase) -> int:
    """The most tokens of an example, prompt and answer, for which packed attention is the model's own."""
    window: int = getattr(base.text_config, "sliding_window", None) or base.text_config.max_position_embeddings
    return window


def packed_logits(base: LoadedBase, batches: Sequence[PackedBatch]) -> list[Tensor]:
    """Logits at every batch's answer rows, [n_answer_tokens, n_vocab] in the model's dtype each, with gradients.

    No example may be longer than `attention_window`, which callers check before they begin.
    The batches run as one sequence; which task's numbers are used for which tokens is the sites' affair.
    """
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    usual = base.model.config._attn_implementation
    base.model.set_attn_implementation(ATTENTION_NAME)
    try:
        rows = [batch.answer_rows + start for batch, start in zip(batches, start_rows(batches), strict=True)]
        logits = base.model(
            input_ids=torch.cat([batch.token_ids for batch in batches]).unsqueeze(0),
            position_ids=torch.cat([batch.positions for batch in batches]).unsqueeze(0),
            use_cache=False,
            logits_to_keep=torch.cat(rows),
            packed_batches=batches,
        ).logits[0]
    finally:
        base.model.set_attn_implementation(usual)
    return list(torch.split(logits, [len(part) for part in rows]))


def packed_attention(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  the batches know what may be seen
    *,
    scaling: float,
    packed_batches: Sequence[PackedBatch],
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query [1, n_heads, n_tokens, head_dim]; key, value [1, n_kv_heads, n_tokens, head_dim].

    A sliding window has no say: no example may be longer (`attention_window`).

    Returns:
        [1, n_tokens, n_heads, head_dim], and no weights.
    """
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    sizes = [batch.n_tokens for batch in packed_batches]
    parts = zip(packed_batches, *(torch.split(part, sizes) for part in (q, k, v)), strict=True)
    out = [_attend_batch(batch, q, k, v, scaling, softcap) for batch, q, k, v in parts]
    return torch.cat(out).unsqueeze(0), None


def _attend_batch(batch: PackedBatch, q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """q [n_tokens, n_heads, dim], k and v [n_tokens, n_kv_heads, dim] -> like q."""
    sizes = [batch.n_shared, batch.n_tokens - batch.n_shared]
    (q_shared, q_rest), (k_shared, k_rest), (v_shared, v_rest) = (torch.split(part, sizes) for part in (q, k, v))
    queries, keys, values = (_pad(part, batch.padding) for part in (q_rest, k_rest, v_rest))
    n_examples = len(batch.rests)
    keys = torch.cat([k_shared.expand(n_examples, -1, -1, -1), keys], dim=1)
    values = torch.cat([v_shared.expand(n_examples, -1, -1, -1), values], dim=1)
    rest = _unpad(_attend(queries, keys, values, scaling, softcap), batch.padding)
    if not batch.n_shared:
        return rest
    shared = _attend(q_shared.unsqueeze(0), k_shared.unsqueeze(0), v_shared.unsqueeze(0), scaling, softcap)[0]
    return torch.cat([shared, rest])


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Causal attention of the last queries of each row to all of its keys.

    q [n_rows, n_queries, n_heads, dim], k and v [n_rows, n_keys, n_kv_heads, dim] -> like q. The query heads that
    share a key head lie one below the other, so that no key is repeated. torch's fused attention is several times
    slower backward at these sizes.
    """
    n_rows, n_queries, n_heads, dim = q.shape
    n_kv_heads, n_keys = k.shape[2], k.shape[1]
    group = n_heads // n_kv_heads
    folded = q.view(n_rows, n_queries, n_kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    folded = (folded * scaling).reshape(n_rows, n_kv_heads, group * n_queries, dim)
    scores = (folded @ k.permute(0, 2, 3, 1)).view(n_rows, n_kv_heads, group, n_queries, n_keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores + _causal(n_queries, n_keys, scores.dtype)).softmax(dim=-1)
    out = weights.view(n_rows, n_kv_heads, group * n_queries, n_keys) @ v.transpose(1, 2)
    out = out.view(n_rows, n_kv_heads, group, n_queries, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(n_rows, n_queries, n_heads, dim)


def _causal(n_queries: int, n_keys: int, dtype: torch.dtype) -> Tensor:
    """[n_queries, n_keys], what is added to the scores: 0 where a query may look, -infinity where not."""
    closed = torch.full((n_queries, n_keys), float("-inf"), dtype=dtype)
    return closed.triu(1 + n_keys - n_queries)


def _pad(tokens: Tensor, padding: Padding) -> Tensor:
    padded: Tensor = _Pad.apply(tokens, padding)  # type: ignore[no-untyped-call]
    return padded


def _unpad(padded: Tensor, padding: Padding) -> Tensor:
    tokens: Tensor = _Unpad.apply(padded, padding)  # type: ignore[no-untyped-call]
    return tokens


class _Pad(torch.autograd.Function):
    """Tokens [n_tokens, ...] of ragged rows to [n_rows, longest, ...]; past a row's end its own last token.

    Backward reads the gradients of the tokens alone, and so is as cheap: nothing flows through the padding.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        return tokens[padding.rows]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.flatten(0, 1)[ctx.padding.places], None


class _Unpad(torch.autograd.Function):
    """The reverse of `_Pad`; the padding's gradient is zero."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, padding: Padding) -> Tensor:
        ctx.padding = padding
        return padded.flatten(0, 1)[padding.places]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        padding: Padding = ctx.padding
        padded = gradient.new_zeros(padding.rows.numel(), *gradient.shape[1:])
        padded[padding.places] = gradient
        return padded.view(*padding.rows.shape, *gradient.shape[1:]), None
