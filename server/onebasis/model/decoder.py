"""The base model's own layers over a mixed batch: transformers computes, our attention and sites take part."""

import torch
from torch import Tensor
from transformers import AttentionInterface

from onebasis.model.adapted import StepTasks
from onebasis.model.attention import ATTENTION_NAME, GatherStep, paged_attention
from onebasis.model.batch import ForwardBatch
from onebasis.model.flex_attention import attention_for
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase


class Decoder:
    """Runs one step at a time. Owns the KV cache; engine thread only.

    Args:
        base: its layers' attention is switched to the paged one for good.
        step: what the adapted layers of `base` read their tokens' tasks from.
    """

    path = "torch"

    def __init__(self, base: LoadedBase, cache: KVCache, step: StepTasks) -> None:
        AttentionInterface.register(ATTENTION_NAME, paged_attention)
        base.model.set_attn_implementation(ATTENTION_NAME)
        self._model = base.model
        self.cache = cache
        self.device = base.model.device
        self._step = step
        self._attention = attention_for(self.device, cache.block_size)

    @property
    def can_be_recorded(self) -> bool:
        """Whether a step's cost does not grow with the width of its block tables, as a CUDA graph's must be fixed."""
        return self.device.type == "cuda" and self._attention is not GatherStep

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits [n_logits, n_vocab] in the model's dtype, at the rows that the batch asks for."""
        self._step.begin(batch)
        output = self._model(
            input_ids=batch.token_ids.unsqueeze(0),
            position_ids=batch.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            paged_step=self._attention(batch, self.cache),
        )
        logits: Tensor = output.logits[0]
        return logits

    def argmax(self, logits: Tensor) -> Tensor:
        """As of any decoder."""
        return logits.argmax(dim=-1)
