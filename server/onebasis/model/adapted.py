"""A base linear layer with the shared basis beside it: y = W x + U^T S_t (V x)."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.kernels.torch_batched import apply_cores
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.sites import site_layer


class StepSlots:
    """Whose task each token of the running step is. One per decoder; set by it around each forward pass."""

    def __init__(self) -> None:
        self.token_slots: Tensor | None = None


class AdaptedLinear(nn.Module):
    """Takes the place of a site's layer. A step without tasks computes what the layer alone would, bit for bit.

    Args:
        base: the frozen layer, weight [d_out, d_in].
        factors: V [k_in, d_in] and U [k_out, d_out] in the layer's dtype.
        cores: [n_slots, k_out, k_in] view of the arena.
        step: shared by all sites of a decoder.
    """

    def __init__(self, base: nn.Linear, factors: SiteFactors, cores: Tensor, step: StepSlots) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = base.bias
        self._factors = factors
        self._cores = cores
        self._step = step

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        token_slots = self._step.token_slots
        if token_slots is None:
            return y
        flat = x.reshape(-1, x.shape[-1])
        delta = apply_cores(flat, self._factors.v, self._factors.u, self._cores, token_slots)
        return y + delta.view_as(y)


def adapt_sites(model: nn.Module, basis: Basis, cores: Mapping[str, Tensor], step: StepSlots) -> None:
    """Replace every site of the basis in `model`, once and for all.

    Raises:
        InvalidBasis: a site is missing in the model. The model is unchanged then.
    """
    adapted = {
        name: AdaptedLinear(site_layer(model, name), factors, cores[name], step)
        for name, factors in basis.factors.items()
    }
    for name, layer in adapted.items():
        model.set_submodule(name, layer)


def merged_weight(weight: Tensor, factors: SiteFactors, core: Tensor) -> Tensor:
    """W + U^T S V in float32 [d_out, d_in]: what a task amounts to. For checks and export, not for serving."""
    return weight.float() + factors.u.float().T @ core.float() @ factors.v.float()
