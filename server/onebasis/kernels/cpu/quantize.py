"""Weights as whole numbers of 8 bits, a scale for each row, and the order in which the compiled step reads them."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.kernels.cpu.library import PANEL

_HIGHEST: Final = 127
_SIGN: Final = 0x80
_LANES: Final = 4
"""128-bit parts of a vector; each holds the pairs of 4 left and of 4 right columns."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes * scales[:, None], with each row's largest magnitude at 127.

    Args:
        weight: [n_out, n_in], finite.

    Returns:
        codes [n_out, n_in] int8 and scales [n_out] float32; a row of zeros has scale 1.
    """
    exact = weight.detach().float()
    scales = exact.abs().amax(dim=1) / _HIGHEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return (exact / scales.unsqueeze(1)).round().clamp(-_HIGHEST, _HIGHEST).to(torch.int8), scales


def pack_codes(codes: Tensor) -> Tensor:
    """Codes [n_out, n_in] as panels: [panels of n_out, n_in / 2, 64] uint8, sign and magnitude; zeros past n_out."""
    n_out, n_in = codes.shape
    padded = F.pad(codes.to(torch.int16), (0, 0, 0, -n_out % PANEL))
    signed = (padded.abs() + (padded < 0) * _SIGN).to(torch.uint8)
    columns = signed.view(-1, 2, _LANES, PANEL // 2 // _LANES, n_in // 2, 2)  # panel, half, lane, column, pair, of two
    return columns.permute(0, 4, 2, 1, 3, 5).reshape(-1, n_in // 2, 2 * PANEL).contiguous()
