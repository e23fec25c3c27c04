"""Bases and random tasks for the tiny models, and the plain models that the tasks amount to."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.request import ResolvedTask
from onebasis.core.residual import Residual
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.model.adapted import merged_weight
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase


@dataclass(frozen=True)
class RandomTask:
    """A task and, by site, the cores [k_out, k_in] and residuals it was made from."""

    resolved: ResolvedTask
    cores: dict[str, Tensor]
    residuals: Mapping[str, Residual]


def random_basis(base: LoadedBase, folder: Path, *, k: int = 4) -> Basis:
    """A random orthonormal basis for this model, through its file."""
    path = folder / "tiny.basis.safetensors"
    build_basis(base, kind=BasisKind.RANDOM, k=k, seed=5, path=path, progress=lambda _: None)
    return load_basis(path, dtype=torch.float32, device=torch.device("cpu"))


def random_task(
    spec: BasisSpec, seed: int, *, scale: float = 0.7, ranks: Mapping[str, int] = MappingProxyType({})
) -> RandomTask:
    """A task with normal random cores, through its file; with residuals of these ranks at sites that end so."""
    rng = np.random.default_rng(seed)
    cores = {site.name: scale * rng.standard_normal((site.k_out, site.k_in), dtype=np.float32) for site in spec.sites}
    values = np.concatenate([core.ravel() for core in cores.values()])
    residuals = {
        site.name: Residual(
            rng.standard_normal((rank, site.d_in), dtype=np.float32),
            rng.standard_normal((site.d_out, rank), dtype=np.float32) * np.float32(scale / site.d_in),
        )
        for site in spec.sites
        for ending, rank in ranks.items()
        if site.name.endswith(ending)
    }
    data = write_coefficients(
        values, form="core", basis=spec.digest, base_fingerprint=spec.base_fingerprint, residual=residuals
    )
    resolved = ResolvedTask(f"task-{seed}", bind(parse_coefficients(data), spec))
    return RandomTask(resolved, {name: torch.from_numpy(core) for name, core in cores.items()}, residuals)


def merged_copy(model: PreTrainedModel, basis: Basis, task: RandomTask) -> PreTrainedModel:
    """A copy of a bare model with the task merged into its weights."""
    merged = copy.deepcopy(model)
    for name, factors in basis.factors.items():
        weight = merged.get_submodule(name).weight
        weight.data = merged_weight(weight, factors, task.cores[name])
        if name in task.residuals:
            weight.data += torch.from_numpy(task.residuals[name].b @ task.residuals[name].a)
    return merged
