"""A frozen linear layer whose weight is kept in the order that the CPU's matrix kernel reads it in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TYPICAL_ROWS = 32


class PackedLinear(nn.Module):
    """y = x W^T + b with W reordered once by oneDNN; nn.Linear reorders on every call.

    The weight exists in the packed order alone; it can't be read back. bfloat16 on a CPU; see `can_pack`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TYPICAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return y


class PlainLinear(nn.Module):
    """y = x W^T + b as torch does it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


def can_pack(weight: Tensor) -> bool:
    """Whether this weight's type and device, and this build of torch, have the packed kernel."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def frozen_linear(weight: Tensor, bias: Tensor | None) -> PackedLinear | PlainLinear:
    """The fastest layer for this weight."""
    return PackedLinear(weight, bias) if can_pack(weight) else PlainLinear(weight, bias)
