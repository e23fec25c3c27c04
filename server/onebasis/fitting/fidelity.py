"""How close one update of a model is to another, on prompts: divergence and greedy agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.data import TokenExample
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.packed_attention import packed_logits
from onebasis.fitting.packing import PackedBatch, pack
from onebasis.model.loader import LoadedBase

Updates = Mapping[str, LowRankUpdate]
"""By site."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Of a candidate beside the original.

    kl: mean over the answers' tokens of KL(original || candidate) of the next-token distribution, whole vocabulary,
        in nats.
    agreement: share of the prompts whose greedy answer is the original's, token for token.
    """

    kl: float
    agreement: float
    n_prompts: int


@torch.no_grad()
def measure_fidelity(
    base: LoadedBase, original: Updates, candidate: Updates, answered: Sequence[TokenExample], *, batch_size: int = 16
) -> Fidelity:
    """Compare two updates on prompts with the original's own greedy answers.

    Both run over the same tokens. The candidate's greedy answer is the original's exactly when its best token is the
    original's at every place of the answer, so nothing has to be generated again.

    Args:
        answered: the prompts; the answers are what the original gives to them (`greedy_answers`).
    """
    kl_sum, n_tokens, n_same = 0.0, 0, 0
    for start in range(0, len(answered), batch_size):
        examples = answered[start : start + batch_size]
        batch = pack(examples)
        with applied_updates(base, original):
            wanted = _log_probs(base, batch)
        with applied_updates(base, candidate):
            found = _log_probs(base, batch)
        kl_sum += float(F.kl_div(found, wanted, reduction="sum", log_target=True))
        n_tokens += len(batch.answer_ids)
        is_same = found.argmax(dim=-1) == batch.answer_ids
        n_same += sum(bool(part.all()) for part in torch.split(is_same, [len(e.answer_ids) for e in examples]))
    return Fidelity(kl=kl_sum / n_tokens, agreement=n_same / len(answered), n_prompts=len(answered))


def _log_probs(base: LoadedBase, batch: PackedBatch) -> Tensor:
    """[n_answer_tokens, n_vocab] float32."""
    return F.log_softmax(packed_logits(base, [batch])[0].float(), dim=-1)
