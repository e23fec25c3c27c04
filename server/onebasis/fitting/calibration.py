"""Cores that keep an adapter's outputs on given text, rather than its weights.

For inputs x of a site with second moments Sigma, the core that minimises E||U^T S V x - dW x||^2 is
(U U^T)^-1 U dW Sigma V^T (V Sigma V^T)^-1. With dW = b a it needs the moments of [a x; V x] alone, a small matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from onebasis.fitting.data import TokenExample
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.projection import Projection, energy_lost, prefix, project, remainder, share_kept
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.loader import LoadedBase

_PULL: Final = 1e-6  # towards the unweighted core, in units of the mean of V Sigma V^T's diagonal


@dataclass(frozen=True, slots=True)
class OutputFidelity:
    """What is kept of an adapter's outputs dW x on given text: 1 - E||P x - dW x||^2 / E||dW x||^2 over all sites.

    Attributes:
        n_tokens: of the text.
        kept: by the cores that are best for these outputs.
        kept_unweighted: by the cores nearest in weights, for comparison.
    """

    n_tokens: int
    kept: float
    kept_unweighted: float


def project_for_inputs(
    updates: Mapping[str, LowRankUpdate],
    basis: Basis,
    base: LoadedBase,
    examples: Sequence[TokenExample],
    on_example: Callable[[], None],
    k: int | None = None,
) -> tuple[Projection, OutputFidelity]:
    """The cores that are best on the inputs that sites have while the bare model reads the examples.

    Args:
        examples: at least one.
        k: use the first k rows of U and V alone; all of them when None.

    Returns:
        the cores, with their energies of weights as everywhere, and what they keep of the outputs.
    """
    plain = project(updates, basis, k)
    factors = {site: prefix(basis.factors[site], k) for site in plain.cores}
    rows = {site: torch.cat([updates[site].a, both.v.float()]) for site, both in factors.items()}
    moments = second_moments(base, rows, examples, on_example)
    cores, lost = dict(plain.cores), dict(plain.lost)
    energy = lost_outputs = lost_unweighted = 0.0
    for site, both in factors.items():
        update, nearest = updates[site], plain.cores[site]
        cores[site] = _weighted_core(update, nearest, both, moments[site])
        lost[site] = energy_lost(update, cores[site], both)
        energy += _output_energy(update, moments[site][: update.rank, : update.rank])
        lost_outputs += _output_energy(remainder(update, cores[site], both), moments[site])
        lost_unweighted += _output_energy(remainder(update, nearest, both), moments[site])
    outputs = OutputFidelity(
        n_tokens=sum(len(example.prompt_ids) + len(example.answer_ids) for example in examples),
        kept=share_kept(energy, lost_outputs),
        kept_unweighted=share_kept(energy, lost_unweighted),
    )
    return replace(plain, cores=cores, lost=lost), outputs


@torch.no_grad()
def second_moments(
    base: LoadedBase,
    rows: Mapping[str, Tensor],
    examples: Sequence[TokenExample],
    on_example: Callable[[], None],
) -> dict[str, Tensor]:
    """E[w w^T] of w = R x at each site, over all tokens of prompts and answers.

    Args:
        rows: R [m, d_in] float32 by site, of layers that the model has; they may be updated ones.

    Returns:
        by site [m, m] float64; w is taken in float32.
    """
    sums = {site: torch.zeros(len(some), len(some), dtype=torch.float64) for site, some in rows.items()}
    hooks = [
        base.model.get_submodule(site).register_forward_pre_hook(_adder(sums[site], some))
        for site, some in rows.items()
    ]
    n_tokens = 0
    try:
        for example in examples:
            tokens = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
            base.model(input_ids=tokens, use_cache=False, logits_to_keep=1)
            n_tokens += tokens.numel()
            on_example()
    finally:
        for hook in hooks:
            hook.remove()
    return {site: total / n_tokens for site, total in sums.items()}


def _adder(total: Tensor, rows: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        w = (inputs[0].flatten(0, -2).float() @ rows.T).double()
        total.addmm_(w.T, w)

    return add


def _weighted_core(update: LowRankUpdate, nearest: Tensor, factors: SiteFactors, moments: Tensor) -> Tensor:
    """[k_out, k_in] float32; directions of V that the text never shows keep the core nearest in weights."""
    n = update.rank
    mixed, inputs = moments[:n, n:], moments[n:, n:]  # E[y z^T] and E[z z^T] of y = a x, z = V x
    pull = _PULL * inputs.diagonal().mean()
    if pull == 0:
        return nearest
    u = factors.u.double()
    target = torch.linalg.solve(u @ u.T, u @ update.b.double()) @ mixed + pull * nearest.double()
    weighted: Tensor = torch.linalg.solve(inputs + pull * torch.eye(len(inputs), dtype=torch.float64), target.T)
    return weighted.T.float()


def _output_energy(update: LowRankUpdate, moments: Tensor) -> float:
    """E||b a x||^2, given E[a x x^T a^T]."""
    b = update.b.double()
    return float(((b.T @ b) * moments).sum())
