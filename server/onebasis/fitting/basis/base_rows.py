"""Directions of the base weight beside others: what the fleet has not, a new task may still need."""

import torch
from torch import Tensor

from onebasis.fitting.basis.hosvd import SiteRows
from onebasis.fitting.basis.leading import deflate, fix_signs, orthonormal


def base_rows(weight: Tensor, k_out: int, k_in: int, fixed: SiteRows) -> SiteRows:
    """The leading singular vectors of what a weight [d_out, d_in] has outside of the fixed rows, pair by pair."""
    rest = deflate(deflate(weight.double(), fixed.v).T, fixed.u).T
    left, _, right = torch.linalg.svd(rest.float(), full_matrices=False)
    u = deflate(left[:, :k_out].T.double(), fixed.u)
    v = deflate(right[:k_in].double(), fixed.v)
    return SiteRows(fix_signs(orthonormal(u)), fix_signs(orthonormal(v)))
