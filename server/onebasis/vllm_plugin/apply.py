"""The update of a layer as one operator, opaque to vLLM's compilation: it changes y in place and returns nothing."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

from onebasis.kernels.cpu.update import NativeUpdate, update_library
from onebasis.kernels.select import CoreProduct, add_group_update_
from onebasis.kernels.torch_batched import TokenTasks
from onebasis.model.adapted import GroupUpdate
from onebasis.vllm_plugin.step_rows import StepRows

_LIBRARY: Final = torch.library.Library("onebasis", "FRAGMENT")  # type: ignore[no-untyped-call]


class LayerUpdates:
    """What a basis adds to one layer. vLLM's forward context knows it by a name, as it knows its attention layers:
    so a compiled graph holds a name, and no tensor of ours.

    Args:
        updates: one for each piece of the basis, two or more only where its cores differ in size.
    """

    def __init__(self, updates: Sequence[GroupUpdate], step: StepRows) -> None:
        self._updates = tuple(updates)
        self._step = step
        library = update_library() if step.rows.device.type == "cpu" else None
        self._native = [
            NativeUpdate(library, update.v, update.u, update.cores, step.rows, columns=update.columns)
            for update in updates
            if library is not None and update.v.dtype == torch.bfloat16
        ]

    def add_(self, y: Tensor, x: Tensor) -> None:
        """y += U^T S_t (V x) under each token's own task; nothing at all where no token of the step has one.

        While a CUDA graph is captured it always runs: the graph will be replayed with other rows.

        Args:
            y: [n_tokens, d_out], changed in place. x: [n_tokens, d_in], same dtype.
        """
        if not self._step.n_task_tokens and not (y.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        if self._native:
            for native in self._native:
                native.add_(y, x)
            return
        product = CoreProduct(TokenTasks(self._step.rows[: x.shape[0]], ()), base_row=self._step.base_row)
        for update in self._updates:
            add_group_update_(y, x, update.v, update.u, update.cores, product)


def add_update_(y: Tensor, x: Tensor, layer: str) -> None:
    """What `LayerUpdates` of this name in the running forward pass does."""
    get_forward_context().no_compile_layers[layer].add_(y, x)


def _no_result(_y: Tensor, _x: Tensor, _layer: str) -> None:
    """All that compilation needs to know of it."""


_LIBRARY.define("add_update_(Tensor(a!) y, Tensor x, str layer) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.impl("add_update_", add_update_, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("add_update_", add_update_, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("onebasis::add_update_", _no_result, lib=_LIBRARY)
