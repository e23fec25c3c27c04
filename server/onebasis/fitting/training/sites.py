"""A model whose linear layers have trainable updates beside them; base weights and factors are frozen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.validate import n_coefficients
from onebasis.core.errors import SetupError
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

    def of_each_token(self, x: Tensor, apply: Callable[[Tensor, TaskNumbers], Tensor]) -> Tensor:
        """`apply` to the tokens [..., n_tokens, d] of each span with the numbers of its task, joined again."""
        if len(self.spans) == 1:
            return apply(x, self.tasks[self.spans[0].place])
        pieces = torch.split(x, [span.n_tokens for span in self.spans], dim=-2)
        parts = [apply(piece, self.tasks[span.place]) for piece, span in zip(pieces, self.spans, strict=True)]
        return torch.cat(parts, dim=-2)


class TrainableSite(nn.Module, ABC):
    """A frozen linear layer plus an update of each token under its own task."""

    def __init__(self, base: nn.Linear, trained: TrainedTasks) -> None:
        super().__init__()
        self.base = base
        self.trained = trained

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.update(x) if self.trained.spans else y

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """dW x of every token under its own task, [..., n_tokens, d_out]."""


class BasisSite(TrainableSite):
    """dW = U^T S V; the task's part gives S: as it is [k_out, k_in], as a diagonal, or as a mix of mixing cores.

    Args:
        index: which of a task's parts is this site's.
        mixing: G [n_mix + 1, k_out, k_in] float32 of the form `vector`; None for the other forms.
    """

    def __init__(
        self, base: nn.Linear, trained: TrainedTasks, index: int, factors: SiteFactors, mixing: Tensor | None
    ) -> None:
        super().__init__(base, trained)
        self._index = index
        self._v = factors.v
        self._u = factors.u
        self._mixing = mixing

    def update(self, x: Tensor) -> Tensor:
        z = F.linear(x, self._v).float()
        return self.trained.of_each_token(z, self._mix).to(x.dtype) @ self._u

    def _mix(self, z: Tensor, task: TaskNumbers) -> Tensor:
        """S z: [..., k_in] -> [..., k_out]."""
        part = task.parts[self._index]
        if self._mixing is not None:
            return F.linear(z, self._mixing[0] + torch.tensordot(part, self._mixing[1:], dims=1))
        if part.dim() == 2:
            return F.linear(z, part)
        n = len(part)
        return F.pad(z[..., :n] * part, (0, self._u.shape[0] - n))


@contextmanager
def trainable_sites(
    base: LoadedBase, basis: Basis, form: str, n_tasks: int = 1, *, learned: TaskNumbers | None = None
) -> Iterator[TrainedTasks]:
    """Put a trainable site in place of each of the basis's layers; the model is as before when the block ends.

    All numbers start at zero: dW is zero then, or G_0, the mean of the tasks behind the mixing cores.

    Args:
        learned: of form `vector`: mixing cores [n_mix + 1, k_out, k_in], a part a site, in place of the basis's own.

    Raises:
        SetupError: form `vector` on a basis without mixing cores.
    """
    spec = basis.spec
    if form != "vector":
        mixing: Mapping[str, Tensor] = {}
        shapes = [site.core_shape() if form == "core" else (n_coefficients(form, site, None),) for site in spec.sites]
    else:
        mixing = own_mixing(spec) if learned is None else dict(zip(basis.factors, learned, strict=True))
        if not mixing:
            raise SetupError(
                f"form 'vector': basis {spec.digest} has no mixing cores; make one with `onebasis basis mix`, "
                f"or learn them with --learn-mixing"
            )
        shapes = [(len(cores) - 1,) for cores in mixing.values()]
    trained = TrainedTasks([TaskNumbers(shapes) for _ in range(n_tasks)])
    layers = {site.name: site_layer(base.model, site.name) for site in spec.sites}
    sites = {
        name: BasisSite(layer, trained, index, basis.factors[name], mixing.get(name))
        for index, (name, layer) in enumerate(layers.items())
    }
    with in_place_of(base, layers, sites):
        yield trained


@contextmanager
def in_place_of(base: LoadedBase, layers: Mapping[str, nn.Linear], sites: Mapping[str, nn.Module]) -> Iterator[None]:
    """`sites` stand where the `layers` of these names are, until the block ends."""
    for name, site in sites.items():
        base.model.set_submodule(name, site)
    try:
        yield
    finally:
        for name, layer in layers.items():
            base.model.set_submodule(name, layer)


def own_mixing(spec: BasisSpec) -> dict[str, Tensor]:
    """The basis's own mixing cores [n_mix + 1, k_out, k_in] float32 by site; empty where it has none."""
    return {site.name: torch.from_numpy(spec.mixing[site.name].astype(np.float32)) for site in spec.sites if site.n_mix}
