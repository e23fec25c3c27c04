"""The basis file from its factors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec, basis_metadata, read_basis_spec
from onebasis.coefficients.container import Container, RawTensor, write_container
from onebasis.coefficients.numbers import raw_numbers
from onebasis.fitting.files import write_whole
from onebasis.model.factors import SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import base_fingerprint

_DTYPE_NAMES: Final = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def write_basis(
    path: Path,
    base: LoadedBase,
    factors: Mapping[str, SiteFactors],
    *,
    kind: str,
    report: Mapping[str, Any],
    mixing: Mapping[str, NDArray[np.generic]] | None = None,
) -> BasisSpec:
    """Write factors as they are, in bfloat16, float16 or float32, and read the header back.

    Args:
        factors: by site, in the model's order.
        mixing: G [n_mix + 1, k_out, k_in] of every site, float16 or float32, for a basis with mixing cores.

    Raises:
        OSError: `path` can't be written.
    """
    sites: list[SiteSpec] = []
    tensors: dict[str, RawTensor] = {}
    for name, site in factors.items():
        (k_in, d_in), (k_out, d_out) = site.v.shape, site.u.shape
        n_mix = len(mixing[name]) - 1 if mixing else 0
        sites.append(SiteSpec(name, d_in=d_in, d_out=d_out, k_in=k_in, k_out=k_out, n_mix=n_mix))
        tensors |= {f"{name}.U": _raw(site.u), f"{name}.V": _raw(site.v)}
        if mixing:
            tensors[f"{name}.G"] = raw_numbers(f"{name}.G", mixing[name])
    metadata = basis_metadata(
        kind=kind,
        base_model=base.name,
        base_fingerprint=base_fingerprint(base.model, factors),
        sites=tuple(sites),
        report=report,
    )
    write_whole(path, write_container(Container(metadata, tensors)))
    return read_basis_spec(path)


def deviation_from_orthonormal(rows: Tensor) -> float:
    """Largest number of rows rows^T - 1."""
    wide = rows.float()
    return float((wide @ wide.T - torch.eye(rows.shape[0])).abs().max())


def _raw(factor: Tensor) -> RawTensor:
    data = factor.contiguous().view(torch.uint8).numpy().tobytes()
    return RawTensor(_DTYPE_NAMES[factor.dtype], tuple(factor.shape), data)
