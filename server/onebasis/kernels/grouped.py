"""The apply step for a group of sites that read the same input, added onto what the base weights gave."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TaskRun:
    """Tokens `start` to `end` are all of the task in row `row` of the cores."""

    start: int
    end: int
    row: int


@dataclass(frozen=True, slots=True)
class TokenTasks:
    """Whose task each token of a step is, as rows of the cores; the base's row holds zeros.

    single_rows: [n_single] int64, the first tokens of the batch, each with a row of its own.
    runs: the tokens behind them, in order.
    """

    single_rows: Tensor
    runs: tuple[TaskRun, ...]


def add_group_update_(y: Tensor, x: Tensor, v: Tensor, u: Tensor, cores: Tensor, tasks: TokenTasks) -> None:
    """y += U^T S_t V x for g sites at once, under each token's own task.

    Args:
        y: [n_tokens, sum of d_out], changed in place. x: [n_tokens, d_in], same dtype.
        v: [g * k_in, d_in], the sites' input factors one below the other.
        u: [g * k_out, sum of d_out], block-diagonal: each site's output factor in its own columns of y.
        cores: [n_rows, g, k_out, k_in] float32.
        tasks: rows of `cores`; a row of zeros leaves a token as it was.

    The core product runs in float32, the others in the dtype of x with its GEMM's accumulation.
    """
    _, n_sites, k_out, k_in = cores.shape
    z = F.linear(x, v).float()
    n_single = tasks.single_rows.shape[0]
    parts: list[Tensor] = []
    if n_single:
        gathered = cores.index_select(0, tasks.single_rows).view(n_single * n_sites, k_out, k_in)
        mixed = torch.bmm(gathered, z[:n_single].view(n_single * n_sites, k_in, 1))
        parts.append(mixed.view(n_single, n_sites * k_out))
    for run in tasks.runs:
        per_site = z[run.start : run.end].view(-1, n_sites, k_in).transpose(0, 1)
        mixed = torch.bmm(per_site, cores[run.row].transpose(1, 2))
        parts.append(mixed.transpose(0, 1).reshape(-1, n_sites * k_out))
    y.addmm_((parts[0] if len(parts) == 1 else torch.cat(parts)).to(y.dtype), u)
