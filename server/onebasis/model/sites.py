"""Which layers of a base model are sites, and the fingerprint of their weights."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from onebasis.core.errors import InvalidBasis, InvalidModel


def linear_sites(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer inside the decoder layers, by dotted path, in the model's order.

    The output head and embeddings are no sites. Raises InvalidModel when there is none.
    """
    sites = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in f".{name}"
    }
    if not sites:
        raise InvalidModel(f"{type(model).__name__} has no linear layer under '.layers.'; it can't be adapted")
    return sites


def site_layer(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer at a dotted path. Raises InvalidBasis when the model has none there."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise InvalidBasis(f"the basis has a site {name!r}, the model has no linear layer there; load its base")
    return layer


def base_fingerprint(model: nn.Module, site_names: Iterable[str]) -> str:
    """`sha256:<hex>` over names, shapes and bfloat16-rounded weights of the sites, by name order.

    Rounding makes it the same for a bfloat16 checkpoint served in float32 and back. Raises InvalidBasis for a
    site that the model does not have.
    """
    state = hashlib.sha256()
    for name in sorted(site_names):
        weight = site_layer(model, name).weight
        state.update(f"{name}:{tuple(weight.shape)}:".encode())
        state.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().data)
    return "sha256:" + state.hexdigest()
