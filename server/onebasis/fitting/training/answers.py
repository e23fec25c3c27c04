"""The loss of supervised training: cross-entropy of the answers' tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.core.errors import InvalidData
from onebasis.fitting.data import TokenExample
from onebasis.fitting.packing import PackedBatch, pack
from onebasis.fitting.training.loop import TaskBatch
from onebasis.fitting.training.sites import TrainedTasks
from onebasis.model.loader import LoadedBase


class AnswerLoss:
    """Mean cross-entropy per answer token, in nats, of every task's batch.

    Raises:
        InvalidData: from `check`, an example is longer than the model's attention window.
    """

    def __init__(self, base: LoadedBase, trained: TrainedTasks) -> None:
        self._base = base
        self._trained = trained

    def __call__(self, batches: Sequence[TaskBatch[TokenExample]]) -> list[Tensor]:
        losses = []
        for batch in batches:
            self._trained.use(batch.place)
            losses.append(answer_loss(self._base, pack(batch.examples)))
        return losses


def answer_loss(base: LoadedBase, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy per answer token, in nats; the head runs on answer tokens alone."""
    dtype = base.model.dtype  # eager attention adds its mask, so True and False would not do
    mask = torch.zeros(batch.mask.shape, dtype=dtype).masked_fill(~batch.mask, torch.finfo(dtype).min)
    logits = base.model(
        input_ids=batch.token_ids,
        position_ids=batch.positions,
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=batch.answer_rows,
    ).logits[0]
    return F.cross_entropy(logits.float(), batch.answer_ids)


def check_window(base: LoadedBase, examples: Sequence[TokenExample]) -> None:
    """Raises InvalidData for an example that is longer than the model's attention window."""
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    window = getattr(base.text_config, "sliding_window", None) or base.text_config.max_position_embeddings
    if longest > window:
        raise InvalidData(f"the longest example has {longest} tokens, the attention window is {window}; shorten it")
