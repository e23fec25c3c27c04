"""One forward pass over packed examples, the head on answer tokens alone."""

import torch
from torch import Tensor

from onebasis.fitting.packing import PackedBatch
from onebasis.model.loader import LoadedBase


def answer_logits(base: LoadedBase, batch: PackedBatch) -> Tensor:
    """[n_answer_tokens, n_vocab] float32, in the order of the batch's `answer_ids`."""
    dtype = base.model.dtype  # eager attention adds its mask, so True and False would not do
    mask = torch.zeros(batch.mask.shape, dtype=dtype).masked_fill(~batch.mask, torch.finfo(dtype).min)
    logits: Tensor = base.model(
        input_ids=batch.token_ids,
        position_ids=batch.positions,
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=batch.answer_rows,
    ).logits[0]
    return logits.float()
