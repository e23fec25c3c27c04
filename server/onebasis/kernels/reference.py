"""Definition of the apply step. Every faster kernel is tested against this file."""

import torch
from torch import Tensor

from onebasis.core.ids import BASE_SLOT


def apply_cores_ref(x: Tensor, v: Tensor, u: Tensor, cores: Tensor, token_slots: Tensor) -> Tensor:
    """Low-rank update of every token under that token's own task.

        delta[t] = u.T @ cores[s] @ v @ x[t]        s = token_slots[t]

    Args:
        x: [n_tokens, d_in] activations, any float dtype.
        v: [k_in, d_in] input factor, shared by all tasks.
        u: [k_out, d_out] output factor, shared by all tasks.
        cores: [n_slots, k_out, k_in], one per resident task, any scale already folded in.
        token_slots: [n_tokens] int32, a row of cores or BASE_SLOT.

    Returns:
        [n_tokens, d_out] float32, zero where the slot is BASE_SLOT; the caller adds it to W x.

    Raises:
        ValueError: the arguments disagree on n_tokens, d_in, k_in or k_out. Nothing is broadcast or cut to fit.

    Source: JD-Full of "Compress then Serve", arXiv 2407.00066 (its Sigma is our core).
    """
    needed = [(v.shape[0], x.shape[1]), (cores.shape[0], u.shape[0], v.shape[0]), (x.shape[0],)]
    found = [tuple(v.shape), tuple(cores.shape), tuple(token_slots.shape)]
    if needed != found:
        raise ValueError(f"v, cores, token_slots: needed {needed}, found {found}")
    delta = torch.zeros(x.shape[0], u.shape[1], dtype=torch.float32, device=x.device)
    for t, slot in enumerate(token_slots.tolist()):
        if slot != BASE_SLOT:
            delta[t] = u.float().T @ (cores[slot].float() @ (v.float() @ x[t].float()))
    return delta
