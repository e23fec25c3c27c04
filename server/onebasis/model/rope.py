"""Rotary angles that do not change with what else is in a step: the factors of longrope are chosen once, at load."""

from typing import Any, Final

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from onebasis.core.errors import InvalidModel

_LONGROPE: Final = "longrope"
_SETTLED: Final = "longrope, settled"  # no kind that transformers knows, so it never looks at the length again


def settle_longrope(model: nn.Module, *, max_model_len: int) -> None:
    """Give every token the long factors if a text may be longer than the model was first trained for, else the short.

    transformers chooses them in every call, by the highest position in it. In a batch of many requests one long text
    would turn the keys of all others, and they would stay so in the prefix cache. vLLM decides as this does. So a
    model that is served with a small max_model_len answers short texts as transformers does, and one served with a
    great one answers them with the long factors.

    `dynamic` changes its angles past max_position_embeddings alone, where no request gets.

    Args:
        max_model_len: the longest text that will be served.

    Raises:
        InvalidModel: it is longer, and the family also scales by the length of a text, in code of its own (PhiMoE).
    """
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        if kinds == _LONGROPE:
            _settle(module, None, max_model_len)
        elif isinstance(kinds, dict):  # families whose layers differ in it
            for layer_type in [layer_type for layer_type, kind in kinds.items() if kind == _LONGROPE]:
                _settle(module, layer_type, max_model_len)


@torch.no_grad()
def _settle(rotary: Any, layer_type: str | None, max_model_len: int) -> None:
    """rotary: a family's rotary embedding; layer_type: which of its several kinds of angles, where it has several."""
    parameters = rotary.config.rope_parameters
    angles = rotary.inv_freq if layer_type is None else getattr(rotary, f"{layer_type}_inv_freq")
    trained = int((parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"])
    if max_model_len > trained and "long_mscale" in parameters:
        raise InvalidModel(
            f"{type(rotary).__name__} scales by the length of a text past {trained} tokens, which would change other "
            f"requests in the same step; set max_model_len to {trained} at most"
        )
    chosen, _ = ROPE_INIT_FUNCTIONS[_LONGROPE](
        rotary.config, angles.device, seq_len=max_model_len, layer_type=layer_type
    )
    angles.copy_(chosen)
    if layer_type is None:
        rotary.rope_type = _SETTLED
    else:
        rotary.rope_type[layer_type] = _SETTLED
