"""The score of updates on a task's unseen items, and how close they are to the original adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import score
from onebasis.fitting.fidelity import Updates, measure_fidelity
from onebasis.fitting.generation import greedy_answers
from onebasis.fitting.packing import pack
from onebasis.fitting.training.answers import answer_losses
from onebasis.model.loader import LoadedBase

_BATCH = 16
_ROOM = 8  # tokens that an answer of the original may be longer than the longest right one


@dataclass(frozen=True, slots=True)
class Score:
    """Of greedy answers to `n_items` unseen items.

    answer_loss: mean cross-entropy per token of the right answers, nats.
    kl, agreement: beside the original adapter, as `Fidelity` has them.
    """

    exact_match: float
    answer_loss: float
    kl: float
    agreement: float
    n_items: int


@dataclass(frozen=True)
class Judge:
    """Of one task; `original` is the adapter that fidelity is measured against. Its answers are made once."""

    base: LoadedBase
    items: Sequence[TokenExample]
    original: Updates

    def score(self, updates: Updates) -> Score:
        with applied_updates(self.base, updates):
            exact = score(self.base, self.items)
            loss = _answer_loss(self.base, self.items)
        fidelity = measure_fidelity(self.base, self.original, updates, self._answered)
        return Score(exact, loss, fidelity.kl, fidelity.agreement, len(self.items))

    @cached_property
    def _answered(self) -> list[TokenExample]:
        longest = max(len(item.answer_ids) for item in self.items) + _ROOM
        prompts = [item.prompt_ids for item in self.items]
        with applied_updates(self.base, self.original):
            answers = greedy_answers(self.base, prompts, max_new_tokens=longest)
        return [TokenExample(prompt, answer, "") for prompt, answer in zip(prompts, answers, strict=True)]


@torch.no_grad()
def _answer_loss(base: LoadedBase, items: Sequence[TokenExample]) -> float:
    total, n_tokens = 0.0, 0
    for start in range(0, len(items), _BATCH):
        batch = pack(items[start : start + _BATCH])
        total += float(answer_losses(base, [batch])[0]) * len(batch.answer_ids)
        n_tokens += len(batch.answer_ids)
    return total / n_tokens
