"""What the original adapter says, computed once: the loss of distillation is the divergence from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.fitting.data import TokenExample
from onebasis.fitting.packed_attention import packed_logits
from onebasis.fitting.packing import PackedBatch, pack
from onebasis.fitting.training.loop import TaskBatch
from onebasis.fitting.training.sites import TokenSpan, TrainedTasks
from onebasis.model.loader import LoadedBase

N_KEPT: Final = 64
"""Tokens of each distribution that are kept one by one; all others are kept as one sum."""


@dataclass(frozen=True, slots=True)
class TaughtExample:
    """A prompt, the original's answer, and its distribution at every token of the answer.

    kept_ids: [n_answer_tokens, n_kept] int64, the likeliest tokens.
    log_probs: [n_answer_tokens, n_kept + 1] float32, theirs and, last, that of all the others together.
    """

    example: TokenExample
    kept_ids: Tensor
    log_probs: Tensor


@torch.no_grad()
def taught_examples(
    base: LoadedBase,
    answered: Sequence[TokenExample],
    *,
    batch_size: int = 16,
    on_examples: Callable[[int], None] = lambda _n: None,
) -> list[TaughtExample]:
    """Note the distributions of the model with the sites it has now.

    Args:
        on_examples: called after every batch with the number of its examples.
    """
    taught: list[TaughtExample] = []
    for start in range(0, len(answered), batch_size):
        examples = answered[start : start + batch_size]
        logits = packed_logits(base, [pack(examples)])[0].float()
        kept_ids = logits.topk(min(N_KEPT, logits.shape[-1] - 1), dim=-1).indices
        sizes = [len(example.answer_ids) for example in examples]
        rows = zip(
            examples, torch.split(kept_ids, sizes), torch.split(_log_probs(logits, kept_ids), sizes), strict=True
        )
        taught += [TaughtExample(*row) for row in rows]
        on_examples(len(examples))
    return taught


class DistillationLoss:
    """Mean over the answers' tokens of KL(original || model), in nats; all batches are computed as one sequence.

    The tokens that are not kept count as one, so it is at most the divergence over the whole vocabulary.
    """

    def __init__(self, base: LoadedBase, trained: TrainedTasks) -> None:
        self._base = base
        self._trained = trained

    def __call__(self, batches: Sequence[TaskBatch[TaughtExample]]) -> list[Tensor]:
        packed = [pack([taught.example for taught in batch.examples]) for batch in batches]
        spans = [TokenSpan(batch.place, part.n_tokens) for batch, part in zip(batches, packed, strict=True)]
        with self._trained.use_spans(spans):
            return divergences(self._base, packed, [batch.examples for batch in batches])


def divergences(
    base: LoadedBase, packed: Sequence[PackedBatch], taught: Sequence[Sequence[TaughtExample]]
) -> list[Tensor]:
    """The loss of each batch, under the sites that the model has now."""
    losses = []
    for logits, examples in zip(packed_logits(base, packed), taught, strict=True):
        found = _log_probs(logits.float(), torch.cat([one.kept_ids for one in examples]))
        wanted = torch.cat([one.log_probs for one in examples])
        losses.append(F.kl_div(found, wanted, reduction="sum", log_target=True) / len(found))
    return losses


def _log_probs(logits: Tensor, kept_ids: Tensor) -> Tensor:
    """[n, n_kept + 1]: of the kept tokens, and of all the others together."""
    total = logits.logsumexp(dim=-1, keepdim=True)
    others = logits.scatter(-1, kept_ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logits.gather(-1, kept_ids), others], dim=-1) - total
