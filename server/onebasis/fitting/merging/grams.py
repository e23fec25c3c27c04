"""What a task's inputs look like through the basis, gathered by running the task on its own data."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates
from onebasis.fitting.data import TokenExample
from onebasis.fitting.merging.regmean import Grams
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase


@torch.no_grad()
def gather_grams(
    base: LoadedBase,
    basis: Basis,
    cores: NDArray[np.float32],
    examples: Sequence[TokenExample],
    on_example: Callable[[], None],
) -> Grams:
    """G = E[z z^T], z = V x, at every site, over all tokens of prompts and answers, under these cores.

    Args:
        cores: [n_core_numbers] of the task whose data it is.
        examples: at least one.

    Returns:
        by site [k_in, k_in] float64; z is taken in float32.
    """
    sums = {name: torch.zeros(len(site.v), len(site.v), dtype=torch.float64) for name, site in basis.factors.items()}
    n_tokens = sum(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    with applied_updates(base, core_updates(basis, cores)):
        hooks = [
            base.model.get_submodule(name).register_forward_pre_hook(_adder(sums[name], site.v.float()))
            for name, site in basis.factors.items()
        ]
        try:
            for example in examples:
                tokens = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
                base.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
                on_example()
        finally:
            for hook in hooks:
                hook.remove()
    return {name: (total / n_tokens).numpy() for name, total in sums.items()}


def _adder(total: Tensor, v: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        z = inputs[0].flatten(0, -2).float() @ v.T
        total.addmm_(z.T.double(), z.double())

    return add
