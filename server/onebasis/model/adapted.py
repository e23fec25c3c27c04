"""Base linear layers with the shared basis beside them: y = W x + U^T S_t (V x), for some tasks + B_t (A_t x).

Layers that read the same input (q, k, v; gate, up) are computed together, base and update: one matrix product with
their weights one below the other, one with their input factors. The first of them to be called computes for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from onebasis.coefficients.residual_cache import ResidentResidual
from onebasis.core.ids import BASE_SLOT
from onebasis.kernels.packed_linear import frozen_linear
from onebasis.kernels.select import CoreProduct, add_group_update_
from onebasis.kernels.torch_batched import TaskRun, TokenTasks
from onebasis.model.batch import ForwardBatch, ResidualRun
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.pieces import pieces_of
from onebasis.model.sites import linear_sites, site_layer

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class StepTasks:
    """Whose task each token of the running step is, shared by all groups of a model. Engine thread only.

    Args:
        base_row: the row of the cores that holds zeros, for tokens of the base.
    """

    def __init__(self, base_row: int = 0) -> None:
        self._base_row = base_row
        self.product: CoreProduct | None = None
        self.residuals: tuple[ResidualRun, ...] = ()

    def begin(self, batch: ForwardBatch) -> None:
        """Take a step's tasks from its batch; `product` is None when no token has one."""
        self.residuals = batch.residuals
        if batch.token_slots is None:
            self.product = None
            return
        n_single = 0 if batch.decodes is None else batch.decodes.n_seqs
        slots = batch.token_slots[:n_single]
        rows = torch.where(slots == BASE_SLOT, self._base_row, slots).long()
        runs = tuple(TaskRun(c.start, c.end, self._row(c.slot)) for c in batch.chunks)
        self.product = CoreProduct(TokenTasks(rows, runs), base_row=self._base_row)

    def _row(self, slot: int) -> int:
        return self._base_row if slot == BASE_SLOT else slot


@dataclass(frozen=True, slots=True)
class GroupUpdate:
    """Factors and cores of a group's sites; shapes as `add_group_update_` wants them.

    columns: where each site's columns of u begin and end.
    """

    v: Tensor
    u: Tensor
    cores: Tensor
    columns: tuple[tuple[int, int], ...]


class LinearGroup:
    """Linear layers that read the same input. A step without tasks runs nothing of the basis.

    Args:
        layers: base layers by name, in order; all of them have a bias or none has.
        updates: what the basis adds; empty without a basis or where it has none of these sites.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], updates: Sequence[GroupUpdate], step: StepTasks) -> None:
        biases: list[Tensor] = [layer.bias for layer in layers.values() if layer.bias is not None]
        weights: list[Tensor] = [layer.weight for layer in layers.values()]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self._base = frozen_linear(weight, torch.cat(biases) if biases else None)
        self._sizes = [layer.out_features for layer in layers.values()]
        self._starts = dict(zip(layers, _starts(self._sizes), strict=True))
        self._updates = tuple(updates)
        self._step = step
        self._input: Tensor | None = None
        self._outputs: list[Tensor] = []

    def output(self, index: int, x: Tensor) -> Tensor:
        """Output of layer `index` for `x`; the outputs of the others wait until they are asked for."""
        if x is not self._input:
            self._outputs = list(torch.split(self._compute(x), self._sizes, dim=-1))
            self._input = x
        outputs = self._outputs
        if index == len(self._sizes) - 1:  # the last in order: nobody will ask again
            self._input, self._outputs = None, []
        return outputs[index]

    def _compute(self, x: Tensor) -> Tensor:
        y: Tensor = self._base(x)
        if self._step.product is not None:
            flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
            for update in self._updates:
                add_group_update_(flat_y, flat_x, update.v, update.u, update.cores, self._step.product)
            for run in self._step.residuals:
                self._add_residual_(flat_y[run.start : run.end], flat_x[run.start : run.end], run.residual)
        return y

    def _add_residual_(self, y: Tensor, x: Tensor, residual: ResidentResidual) -> None:
        """y += B (A x) in place, for the rows of one sequence alone: no bit depends on, or changes, another's."""
        for name, start in self._starts.items():
            factors = residual.sites.get(name)
            if factors is not None:
                y[:, start : start + factors.b.shape[1]].addmm_(F.linear(x, factors.a), factors.b)


class GroupMember(nn.Module):
    """Stands in the model where the layer was."""

    def __init__(self, group: LinearGroup, index: int) -> None:
        super().__init__()
        self._group = group
        self._index = index

    def forward(self, x: Tensor) -> Tensor:
        return self._group.output(self._index, x)


def adapt_model(model: PreTrainedModel, basis: Basis | None, cores: Mapping[str, Tensor], step: StepTasks) -> None:
    """Replace every linear layer of the decoder layers, and the head, once and for all; with or without a basis.

    Args:
        cores: by site name, [n_rows, k_out, k_in] views of the arena.

    Raises:
        InvalidBasis: the basis has a site that the model has not. The model is unchanged then.
    """
    for name in {} if basis is None else basis.factors:
        site_layer(model, name)
    pieces = [] if basis is None else pieces_of(basis, cores)
    for names, layers in _groups(linear_sites(model)):
        sizes = [layer.out_features for layer in layers]
        updates = [update for piece in pieces for update in group_updates(names, sizes, piece.factors, piece.cores)]
        group = LinearGroup(dict(zip(names, layers, strict=True)), updates, step)
        for index, name in enumerate(names):
            model.set_submodule(name, GroupMember(group, index))
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        model.set_output_embeddings(frozen_linear(head.weight, head.bias))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # so that nothing holds the checkpoint's mapping any more


def group_updates(
    names: Sequence[str], sizes: Sequence[int], factors: Mapping[str, SiteFactors], cores: Mapping[str, Tensor]
) -> list[GroupUpdate]:
    """One update for a whole group where its cores are of one size, else one for each site.

    Args:
        names, sizes: the group's layers and how many outputs each has, side by side in y.
        factors, cores: by name, of those that are sites. U is as wide as its layer has outputs.
    """
    starts = dict(zip(names, _starts(sizes), strict=True))
    width = sum(sizes)
    present = [name for name in names if name in factors]
    together = _stacked([cores[name] for name in present])
    if together is not None:
        return [_update(present, factors, together, starts, width)]
    return [_update([name], factors, cores[name].unsqueeze(1), starts, width) for name in present]


def merged_weight(weight: Tensor, factors: SiteFactors, core: Tensor) -> Tensor:
    """W + U^T S V in float32 [d_out, d_in]: what a task amounts to. For checks and export, not for serving."""
    return weight.float() + factors.u.float().T @ core.float() @ factors.v.float()


def _groups(layers: Mapping[str, nn.Linear]) -> list[tuple[list[str], list[nn.Linear]]]:
    """Layers by shared input, in the model's order."""
    groups: list[tuple[list[str], list[nn.Linear]]] = []
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        leader = next((names[0] for names in _SAME_INPUT if own in names[1:]), None)
        members = next((group for group in groups if group[0][0] == f"{parent}.{leader}"), None)
        if members is not None and (members[1][0].bias is None) == (layer.bias is None):
            members[0].append(name)
            members[1].append(layer)
        else:
            groups.append(([name], [layer]))
    return groups


def _update(
    names: Sequence[str], factors: Mapping[str, SiteFactors], cores: Tensor, starts: Mapping[str, int], width: int
) -> GroupUpdate:
    rows = []
    columns = []
    for name in names:
        u = factors[name].u
        row = u.new_zeros(u.shape[0], width)
        row[:, starts[name] : starts[name] + u.shape[1]] = u
        rows.append(row)
        columns.append((starts[name], starts[name] + u.shape[1]))
    v = torch.cat([factors[name].v for name in names])
    return GroupUpdate(v=v, u=torch.cat(rows), cores=cores, columns=tuple(columns))


def _starts(sizes: Sequence[int]) -> list[int]:
    """First output column of each layer."""
    return [0, *accumulate(sizes[:-1])]


def _stacked(cores: Sequence[Tensor]) -> Tensor | None:
    """[n_rows, n_sites, k_out, k_in] without a copy, if the sites' views are of one size and evenly spaced."""
    if not cores:
        return None
    first = cores[0]
    spacing = cores[-1].storage_offset() - first.storage_offset()
    spacing //= max(len(cores) - 1, 1)
    for i, core in enumerate(cores):
        offset = first.storage_offset() + i * spacing
        if core.shape != first.shape or core.storage_offset() != offset or core.stride() != first.stride():
            return None
    n_rows, k_out, k_in = first.shape
    stride = first.stride()
    return first.as_strided((n_rows, len(cores), k_out, k_in), (stride[0], spacing, stride[1], stride[2]))
