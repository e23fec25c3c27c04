"""Mixing cores for the form `vector`, S_t = G_0 + sum_j c_tj G_j: from the cores of tasks that were trained before, and
the file of a basis that has them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebasis import __version__
from onebasis.coefficients.basis_file import BasisSpec, basis_metadata, read_basis_spec
from onebasis.coefficients.container import Container, read_container, write_container
from onebasis.coefficients.numbers import raw_numbers
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.errors import InvalidBasis
from onebasis.fitting.files import write_whole


@dataclass(frozen=True, slots=True)
class MixingCores:
    """G [n_mix + 1, k_out, k_in] float32 of one site, and how much of the tasks' cores it holds.

    energy_held: share of the squared Frobenius norm of the cores, uncentred, that G_0 and the best mix of the others
        keep; of the tasks that G was made from.
    """

    cores: NDArray[np.float32]
    energy_held: float


def mixing_cores(cores: NDArray[np.floating], n_mix: int) -> MixingCores:
    """Principal components of one site's cores [n_tasks, k_out, k_in] (a Tucker-3 decomposition of the tasks).

    G_0 is the mean of the cores. G_j is the j-th principal direction of what is left, as long as the tasks' standard
    deviation along it, so that numbers about 1 stand for a task like these. Signs are such that the largest entry
    is positive.
    """
    flat = cores.reshape(len(cores), -1).astype(np.float64)
    mean = flat.mean(axis=0)
    _, sigma, directions = np.linalg.svd(flat - mean, full_matrices=False)
    directions = directions[:n_mix]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1, keepdims=True), axis=1)
    scaled = directions * np.sign(largest) * (sigma[:n_mix, None] / np.sqrt(len(cores)))
    lost = float((sigma[n_mix:] ** 2).sum()) / max(float((flat**2).sum()), np.finfo(np.float64).tiny)
    mixed = np.concatenate([mean[None], scaled]).reshape(n_mix + 1, *cores.shape[1:])
    return MixingCores(mixed.astype(np.float32), 1.0 - lost)


def mix_basis(basis: Path, tasks: Sequence[BoundCoefficients], n_mix: int, output: Path) -> BasisSpec:
    """Write `basis` with mixing cores made from the tasks' cores; the factors stay bit by bit.

    It is another basis, with another digest: files of the old one have to be addressed to it anew.

    Args:
        tasks: at least n_mix + 1, as the mean takes one degree of freedom.

    Raises:
        InvalidBasis: n_mix is not between 1 and the number of different tasks less one, or above the numbers of some
            core.
        OSError: a file can't be read or written.
    """
    check_n_mix(n_mix, len({task.digest for task in tasks}))
    spec = read_basis_spec(basis)
    smallest = min(spec.sites, key=lambda site: site.k_out * site.k_in)
    if n_mix > smallest.k_out * smallest.k_in:
        raise InvalidBasis(
            f"{n_mix} mixing cores: the core of {smallest.name} has {smallest.k_out * smallest.k_in} numbers itself; "
            f"lower --n-mix"
        )
    made = _by_site(spec, tasks, n_mix)
    report = {
        "from_tasks": [{"task": task.file.task, "digest": task.digest} for task in tasks],
        "in_sample_energy_held_by_site": {name: round(site.energy_held, 4) for name, site in made.items()},
    }
    return write_mixing(basis, {name: site.cores for name, site in made.items()}, report, output)


def check_n_mix(n_mix: int, n_tasks: int) -> None:
    """Raises InvalidBasis: so many mixing cores would hold every task's own core, and nothing that they share."""
    if not 1 <= n_mix < n_tasks:
        raise InvalidBasis(
            f"{n_mix} mixing cores from {n_tasks} tasks: allowed are 1 to {n_tasks - 1}, one less than tasks"
        )


def write_mixing(
    basis: Path, cores: Mapping[str, NDArray[np.float32]], origin: Mapping[str, Any], output: Path
) -> BasisSpec:
    """Write `basis` with these mixing cores, in place of any that it has; the factors stay bit by bit.

    Args:
        cores: G [n_mix + 1, k_out, k_in] of every site.
        origin: what the new basis's report says of them, beside their count and the basis.

    Raises:
        OSError: a file can't be read or written.
    """
    spec = read_basis_spec(basis)
    container = read_container(basis.read_bytes())
    tensors = {name: tensor for name, tensor in container.tensors.items() if not name.endswith(".G")}
    tensors |= {f"{name}.G": raw_numbers(f"{name}.G", mixing) for name, mixing in cores.items()}
    sites = tuple(replace(site, n_mix=len(cores[site.name]) - 1) for site in spec.sites)
    report = {
        "n_mix": sites[0].n_mix,
        "from_basis": spec.digest,
        "tool": f"onebasis {__version__}",
        **origin,
    }
    metadata = basis_metadata(
        kind=spec.kind,
        base_model=spec.base_model,
        base_fingerprint=spec.base_fingerprint,
        sites=sites,
        report={**spec.report, "mixing": report},
    )
    write_whole(output, write_container(Container(metadata, tensors)))
    return read_basis_spec(output)


def _by_site(spec: BasisSpec, tasks: Sequence[BoundCoefficients], n_mix: int) -> Mapping[str, MixingCores]:
    flat = np.stack([task.flat_cores() for task in tasks])
    ends = np.cumsum([site.k_out * site.k_in for site in spec.sites])
    parts = np.split(flat, ends[:-1], axis=1)
    return {
        site.name: mixing_cores(part.reshape(len(tasks), site.k_out, site.k_in), n_mix)
        for site, part in zip(spec.sites, parts, strict=True)
    }
