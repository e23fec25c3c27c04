"""Slow truth: transformers' own generate on weights that a task has been merged into."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.coefficients.numbers import widen
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.model.adapted import merged_weight
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer

MAX_GAP_OF_A_FLIP = 1e-3


@dataclass(frozen=True)
class Reference:
    """A base model that no server has touched, with the basis to merge tasks by."""

    base: LoadedBase
    basis: Basis

    @contextmanager
    def merged(self, coefficients: BoundCoefficients | None) -> Iterator[None]:
        """The task's dW is in the weights inside the block; None leaves them bare."""
        before: dict[str, Tensor] = {}
        if coefficients is not None:
            flat = torch.from_numpy(coefficients.flat_cores())
            start = 0
            for site in self.basis.spec.sites:
                end = start + site.k_out * site.k_in
                core = flat[start:end].view(site.k_out, site.k_in)
                weight = site_layer(self.base.model, site.name).weight
                before[site.name] = weight.data
                weight.data = merged_weight(weight.data, self.basis.factors[site.name], core)
                if site.name in coefficients.residual:
                    residual = coefficients.residual[site.name]
                    weight.data += torch.from_numpy(widen(residual.b) @ widen(residual.a))
                start = end
        try:
            yield
        finally:
            for name, weight in before.items():
                site_layer(self.base.model, name).weight.data = weight

    def generate(self, prompt_ids: tuple[int, ...], max_tokens: int) -> list[int]:
        """Greedy tokens."""
        tokens = self.base.model.generate(
            input_ids=torch.tensor([prompt_ids]),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=sorted(self.base.eos_token_ids),
            pad_token_id=min(self.base.eos_token_ids),
        )
        return tokens[0, len(prompt_ids) :].tolist()

    @torch.inference_mode()
    def gap_at(self, token_ids: list[int]) -> float:
        """How far apart the two best logits are behind these tokens."""
        best = self.base.model(input_ids=torch.tensor([token_ids])).logits[0, -1].topk(2).values
        return float(best[0] - best[1])

    def is_legitimate_flip(self, prompt_ids: tuple[int, ...], found: list[int], wanted: list[int]) -> bool:
        """The first difference is where the two best logits are all but equal."""
        n_same = next(
            (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
        )
        return self.gap_at([*prompt_ids, *wanted[:n_same]]) < MAX_GAP_OF_A_FLIP
