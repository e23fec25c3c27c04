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
    """Consecutive tokens of one task: its place among the trained tasks, how many tokens.

    A pass that is one span only has all of its tokens in it, however many.
    """

    place: int
    n_tokens: int = 0


class TrainedTasks:
    """The tasks that a model's sites train, and whose tokens a forward pass holds.

    Invariant: outside of the two `use` blocks no token is any task's, and the model is the bare one.
    """

    def __init__(self, tasks: Sequence[TaskNumbers]) -> None:
        self.tasks = tuple(tasks)
        self.spans: tuple[TokenSpan, ...] = ()

    @contextmanager
    def use(self, place: int) -> Iterator[None]:
        """Inside the block all tokens of any forward pass are of one task."""
        with self.use_spans([TokenSpan(place)]):
            yield

    @contextmanager
    def use_spans(self, spans: Sequence[TokenSpan]) -> Iterator[None]:
        """Inside the block a forward pass is one sequence of these spans."""
        self.spans = tuple(spans)
        try:
            yield
        finally:
            self.spans = ()


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
        y: Tensor = self.base(x)
        if not self.trained.spans:
            return y
        z = F.linear(x, self.v).float()
        return y + self._mix(z).to(x.dtype) @ self.u

    def _mix(self, z: Tensor) -> Tensor:
        """S z of every token under its own task: [..., k_in] -> [..., k_out]."""
        spans = self.trained.spans
        if len(spans) == 1:
            return self._mix_one(z, spans[0].place)
        pieces = torch.split(z, [span.n_tokens for span in spans], dim=-2)
        return torch.cat([self._mix_one(piece, span.place) for piece, span in zip(pieces, spans, strict=True)], dim=-2)

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
