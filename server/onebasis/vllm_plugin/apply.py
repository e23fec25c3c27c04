"""The update of a layer as one operator, opaque to vLLM's compilation: it changes y in place and returns nothing."""

from typing import Final

import torch
from torch import Tensor

from onebasis.kernels.select import CoreProduct, add_group_update_
from onebasis.kernels.torch_batched import TokenTasks

_SCHEMA: Final = (
    "add_update_(Tensor(a!) y, Tensor x, Tensor v, Tensor u, Tensor cores, Tensor rows, Tensor n_task_tokens) -> ()"
)
_LIBRARY: Final = torch.library.Library("onebasis", "FRAGMENT")  # type: ignore[no-untyped-call]


def add_update_(y: Tensor, x: Tensor, v: Tensor, u: Tensor, cores: Tensor, rows: Tensor, n_task_tokens: Tensor) -> None:
    """y += U^T S_t V x under each token's own task; nothing at all where no token of the step has one.

    While a CUDA graph is captured it always runs: the graph will be replayed with other rows.

    Args:
        y, x, v, u, cores: as `add_group_update_`.
        rows: [n_tokens or more] int64, each token's row of `cores`, whose last is the base's.
        n_task_tokens: [1] on the host, tokens whose row is not the base's.
    """
    if not n_task_tokens.item() and not (y.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    product = CoreProduct(TokenTasks(rows[: x.shape[0]], ()), base_row=cores.shape[0] - 1)
    add_group_update_(y, x, v, u, cores, product)


def _no_result(*_arguments: Tensor) -> None:
    """What compilation needs to know of it."""


_LIBRARY.define(_SCHEMA)  # type: ignore[no-untyped-call]
_LIBRARY.impl("add_update_", add_update_, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("add_update_", add_update_, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("onebasis::add_update_", _no_result, lib=_LIBRARY)
