"""The basis beside vLLM's linear layers, cut as tensor parallelism cuts their weights.

A layer that is split by output rows gets U by rows and V whole; one that is split by input columns gets V by
columns and U whole, and its part of the update goes into the partial output that vLLM adds up over the ranks anyway:
everything behind V is linear.
"""

from collections.abc import Mapping, MutableMapping
from itertools import accumulate

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.models.utils import PPMissingLayer

from onebasis.core.errors import InvalidBasis
from onebasis.model.adapted import GroupUpdate, group_updates
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.pieces import pieces_of
from onebasis.vllm_plugin.apply import LayerUpdates
from onebasis.vllm_plugin.step_rows import StepRows


class AdaptedMethod(LinearMethodBase):  # type: ignore[misc]
    """Goes around what multiplies with a layer's weight: W x first, then the update, before any all-reduce.

    Args:
        name: of the layer's `LayerUpdates` in the forward context.
    """

    def __init__(self, base: LinearMethodBase, name: str) -> None:
        self._base = base
        self._name = name

    def create_weights(self, *args: object, **kwargs: object) -> None:
        self._base.create_weights(*args, **kwargs)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self._base.process_weights_after_loading(layer)

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = self._base.apply(layer, x, bias)
        torch.ops.onebasis.add_update_(y, x, self._name)
        return y


def attach_basis(
    model: nn.Module, basis: Basis, cores: Mapping[str, Tensor], step: StepRows, context: MutableMapping[str, object]
) -> None:
    """Put the basis beside this rank's layers.

    Args:
        basis: whole, on any device. cores: by site name, [n_rows, k_out, k_in] views of the table.
        context: where vLLM's forward passes find layers by name; ours are added.

    Raises:
        InvalidBasis: the basis has a site that no layer of the model is.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LinearBase)}
    members = {name: _members(model, name) for name in layers}
    known = {site for sites in members.values() for site in sites}
    for site in basis.factors:
        if site not in known and not _is_elsewhere(model, site):
            raise InvalidBasis(
                f"the basis has a site {site!r}, vLLM's {type(model).__name__} has no linear layer there"
            )
    device = next(iter(cores.values())).device
    pieces = pieces_of(basis, cores)
    for name, layer in layers.items():
        updates: list[GroupUpdate] = []
        for piece in pieces:
            own = {
                site: _shard(layer, index, len(members[name]), piece.factors[site], device)
                for index, site in enumerate(members[name])
                if site in piece.factors
            }
            updates += group_updates(members[name], layer.output_partition_sizes, own, piece.cores)
        if updates:
            context[f"{name}.onebasis"] = LayerUpdates(updates, step)
            layer.quant_method = AdaptedMethod(layer.quant_method, f"{name}.onebasis")


def _members(model: nn.Module, name: str) -> list[str]:
    """The sites that a layer may hold, in the order of its outputs: its own name, or those it is fused from."""
    parent, _, own = name.rpartition(".")
    fused: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    return [f"{parent}.{part}" for part in fused.get(own, [own])]


def _is_elsewhere(model: nn.Module, site: str) -> bool:
    """Whether another rank of the pipeline has this site's layer."""
    prefixes = accumulate(site.split("."), "{}.{}".format)
    modules = dict(model.named_modules())
    return any(isinstance(modules.get(prefix), PPMissingLayer) for prefix in prefixes)


def _shard(layer: LinearBase, index: int, n_members: int, factors: SiteFactors, device: torch.device) -> SiteFactors:
    """This rank's part of a site's factors: whatever the layer's own loader takes of a weight, it takes of U or V."""
    u, v = factors.u, factors.v
    if isinstance(layer, RowParallelLinear):
        mine = _as_weight(v.new_zeros(v.shape[0], layer.input_size_per_partition), input_dim=1)
        layer.weight_loader(mine, v)
        return SiteFactors(v=mine.data.to(device), u=u.to(device))
    mine = _as_weight(u.new_zeros(sum(layer.output_partition_sizes), u.shape[0]), output_dim=0)
    if n_members == 1:
        layer.weight_loader(mine, u.T)
    else:
        layer.weight_loader(mine, u.T, _shard_id(layer, index))
    start = sum(layer.output_partition_sizes[:index])
    rows = mine.data[start : start + layer.output_partition_sizes[index]]
    return SiteFactors(v=v.to(device), u=rows.T.contiguous().to(device))


def _shard_id(layer: LinearBase, index: int) -> str | int:
    return "qkv"[index] if isinstance(layer, QKVParallelLinear) else index


def _as_weight(data: Tensor, **dims: int) -> nn.Parameter:
    parameter = nn.Parameter(data, requires_grad=False)
    for name, dim in dims.items():
        setattr(parameter, name, dim)
    return parameter
