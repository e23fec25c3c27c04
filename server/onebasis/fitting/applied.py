"""The base model with low-rank updates beside its layers: an original adapter, a mean of adapters, a null."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.core.errors import SetupError
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer


class UpdatedSite(nn.Module):
    """A frozen linear layer plus b (a x), in the layer's dtype."""

    def __init__(self, base: nn.Linear, update: LowRankUpdate) -> None:
        super().__init__()
        self.base = base
        self.a = update.a.to(base.weight)
        self.b = update.b.to(base.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + F.linear(F.linear(x, self.a), self.b)


@contextmanager
def applied_updates(base: LoadedBase, updates: Mapping[str, LowRankUpdate]) -> Iterator[None]:
    """Let `base.model` compute W x + b (a x) at these sites; it is as before when the block ends.

    Raises:
        InvalidBasis: the model has no linear layer of that name.
        SetupError: an update is not of its layer's size. The model is unchanged in both cases.
    """
    layers = {name: site_layer(base.model, name) for name in updates}
    for name, layer in layers.items():
        _check_size(name, layer, updates[name])
    for name, layer in layers.items():
        base.model.set_submodule(name, UpdatedSite(layer, updates[name]))
    try:
        yield
    finally:
        for name, layer in layers.items():
            base.model.set_submodule(name, layer)


def _check_size(name: str, layer: nn.Linear, update: LowRankUpdate) -> None:
    found = (tuple(update.b.shape), tuple(update.a.shape))
    needed = ((layer.out_features, update.rank), (update.rank, layer.in_features))
    if found != needed:
        raise SetupError(f"update of {name}: b and a are {found}, the layer needs {needed}; it is for another model")
