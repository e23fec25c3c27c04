"""The loss of supervised training: cross-entropy of the answers' tokens."""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.core.errors import InvalidData
from onebasis.fitting.data import TokenExample
from onebasis.fitting.packed_attention import attention_window, packed_logits
from onebasis.fitting.packing import PackedBatch, pack
from onebasis.fitting.training.loop import TaskBatch
from onebasis.fitting.training.sites import TokenSpan, TrainedTasks
from onebasis.model.loader import LoadedBase

_VALIDATION_BATCH: Final = 16


class AnswerLoss:
    """Mean cross-entropy per answer token, in nats, of every task's batch; all batches are computed as one sequence."""

    def __init__(self, base: LoadedBase, trained: TrainedTasks) -> None:
        self._base = base
        self._trained = trained

    def __call__(self, batches: Sequence[TaskBatch[TokenExample]]) -> list[Tensor]:
        packed = [pack(batch.examples) for batch in batches]
        spans = [TokenSpan(batch.place, part.n_tokens) for batch, part in zip(batches, packed, strict=True)]
        with self._trained.use_spans(spans):
            return answer_losses(self._base, packed)

    @torch.no_grad()
    def of_all(self, place: int, examples: Sequence[TokenExample]) -> float:
        """Mean cross-entropy per answer token of any number of examples, under the numbers of the task at `place`."""
        total = 0.0
        for start in range(0, len(examples), _VALIDATION_BATCH):
            batch = pack(examples[start : start + _VALIDATION_BATCH])
            with self._trained.use(place):
                total += float(answer_losses(self._base, [batch])[0]) * len(batch.answer_ids)
        return total / sum(len(example.answer_ids) for example in examples)


def answer_losses(base: LoadedBase, packed: Sequence[PackedBatch]) -> list[Tensor]:
    """Mean cross-entropy per answer token of each batch, in nats; the head runs on answer tokens alone."""
    logits = packed_logits(base, packed)
    return [F.cross_entropy(part.float(), batch.answer_ids) for part, batch in zip(logits, packed, strict=True)]


def check_window(base: LoadedBase, task: str, examples: Sequence[TokenExample]) -> None:
    """Raises InvalidData for an example of a task that is longer than the model's attention window."""
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    window = attention_window(base)
    if longest > window:
        raise InvalidData(
            f"{task}: the longest example has {longest} tokens, the attention window is {window}; shorten it"
        )
