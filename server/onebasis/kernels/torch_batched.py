"""The apply step in plain torch, for any device: no loop over tasks or tokens."""

import torch
from torch import Tensor

from onebasis.kernels.reference import check_shapes


def apply_cores(x: Tensor, v: Tensor, u: Tensor, cores: Tensor, token_slots: Tensor) -> Tensor:
    """Two products shared by all tasks, and one gathered product over the tiny cores between them.

    Arguments and errors are those of `apply_cores_ref`. The shared products run in the dtype of x and accumulate
    as its GEMM does (float32 for bfloat16); the core product runs in float32.

    Returns:
        [n_tokens, d_out] in the dtype of x, exactly zero where the slot is BASE_SLOT.
    """
    check_shapes(x, v, u, cores, token_slots)
    z = (x @ v.T.to(x.dtype)).float()
    gathered = cores.index_select(0, token_slots.clamp(min=0)).float()
    mixed = torch.bmm(gathered, z.unsqueeze(2)).squeeze(2)
    mixed = mixed.masked_fill((token_slots < 0).unsqueeze(1), 0.0)
    return mixed.to(x.dtype) @ u.to(x.dtype)
