"""The model with trainable coefficients: base weights and factors frozen, dW zero at the start."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.fitting.training.task_numbers import TaskNumbers
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Consecutive tokens of one task: its place among the trained tasks, how many tokens."""

    place: int
    n_tokens: int


class TrainedTasks:
    """The tasks that a model's sites train, and whose tokens the next forward pass holds.

    Invariant: `spans` covers the tokens of a pass in order; empty, all tokens are those of task `only`.
    """

    def __init__(self, tasks: Sequence[TaskNumbers]) -> None:
        self.tasks = tuple(tasks)
        self.only = 0
        self.spans: tuple[TokenSpan, ...] = ()

    def use(self, place: int) -> None:
        """From now on all tokens are of one task, in any number of sequences."""
        self.only, self.spans = place, ()

    def use_spans(self, spans: Sequence[TokenSpan]) -> None:
        """From now on a pass is one sequence with these spans."""
        self.only, self.spans = spans[0].place, tuple(spans) if len(spans) > 1 else ()


class TrainableSite(nn.Module):
    """A frozen linear layer plus U^T S V with S trained: a part [k_out, k_in], or a diagonal [min(k_out, k_in)].

    Args:
        index: which of the tasks' parts are this site's.
    """

    def __init__(self, base: nn.Linear, factors: SiteFactors, trained: TrainedTasks, index: int) -> None:
        super().__init__()
        self.base = base
        self.v = factors.v
        self.u = factors.u
        self.trained = trained
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.v).float()
        y: Tensor = self.base(x)
        return y + self._mix(z).to(x.dtype) @ self.u

    def _mix(self, z: Tensor) -> Tensor:
        """S z of every token under its own task: [..., k_in] -> [..., k_out]."""
        trained = self.trained
        if not trained.spans:
            return self._mix_one(z, trained.only)
        pieces = torch.split(z, [span.n_tokens for span in trained.spans], dim=-2)
        return torch.cat(
            [self._mix_one(piece, span.place) for piece, span in zip(pieces, trained.spans, strict=True)], dim=-2
        )

    def _mix_one(self, z: Tensor, place: int) -> Tensor:
        numbers = self.trained.tasks[place].parts[self._index]
        if numbers.dim() == 2:
            return F.linear(z, numbers)
        n = len(numbers)
        return F.pad(z[..., :n] * numbers, (0, self.u.shape[0] - n))


def part_shape(factors: SiteFactors, form: str) -> tuple[int, ...]:
    """Shape of the numbers that a form keeps for one site."""
    shape = (factors.u.shape[0], factors.v.shape[0])
    return shape if form == "core" else (min(shape),)


@contextmanager
def trainable_sites(base: LoadedBase, basis: Basis, form: str, n_tasks: int = 1) -> Iterator[TrainedTasks]:
    """Put a trainable site in place of each site's layer; the model is as before when the block ends."""
    layers = {site.name: site_layer(base.model, site.name) for site in basis.spec.sites}
    shapes = [part_shape(basis.factors[name], form) for name in layers]
    trained = TrainedTasks([TaskNumbers(shapes) for _ in range(n_tasks)])
    for index, (name, layer) in enumerate(layers.items()):
        base.model.set_submodule(name, TrainableSite(layer, basis.factors[name], trained, index))
    try:
        yield trained
    finally:
        for name, layer in layers.items():
            base.model.set_submodule(name, layer)
