"""The apply step for a group of sites, with the core product that fits the device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.kernels import torch_batched, triton_batched
from onebasis.kernels.torch_batched import TaskRun, TokenTasks


class CoreProduct:
    """The core product of one step: Triton's on a GPU where triton is installed, torch's everywhere else.

    Made once a step, used at every site.
    """

    def __init__(self, tasks: TokenTasks, *, base_row: int) -> None:
        self._tasks = tasks
        self._base_row = base_row
        self._use_triton = tasks.single_rows.is_cuda and triton_batched.is_available()
        self._tiles = _tiles(tasks.runs, tasks.single_rows.device) if self._use_triton else None

    def __call__(self, z: Tensor, cores: Tensor) -> Tensor:
        """[n_tokens, g * k_out] in the dtype of z; arguments as `torch_batched.mix_cores`."""
        if self._use_triton:
            return triton_batched.mix_cores(z, cores, self._tasks.single_rows, self._tiles, base_row=self._base_row)
        return torch_batched.mix_cores(z, cores, self._tasks)


def add_group_update_(y: Tensor, x: Tensor, v: Tensor, u: Tensor, cores: Tensor, product: CoreProduct) -> None:
    """y += U^T S_t V x for g sites at once, under each token's own task.

    Args:
        y: [n_tokens, sum of d_out], changed in place. x: [n_tokens, d_in], same dtype.
        v: [g * k_in, d_in], the sites' input factors one below the other.
        u: [g * k_out, sum of d_out], block-diagonal: each site's output factor in its own columns of y.
        cores: [n_rows, g, k_out, k_in] float32, the last row zeros: it leaves a token as it was.
        product: knows the step's tasks.

    The core product runs in float32, the others in the dtype of x with its GEMM's accumulation.
    """
    y.addmm_(product(F.linear(x, v), cores), u)


def _tiles(runs: tuple[TaskRun, ...], device: torch.device) -> triton_batched.RunTiles | None:
    if not runs:
        return None
    bounds = [runs[0].start, *(run.end for run in runs)]
    return triton_batched.plan_runs(bounds, [run.row for run in runs], device=device)
