"""The core product for a group of sites that read the same input, in plain torch."""

from dataclasses import dataclass

import torch
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


def mix_cores(z: Tensor, cores: Tensor, tasks: TokenTasks) -> Tensor:
    """Each token's z under the core of its own task, at the g sites of a group.

    Args:
        z: [n_tokens, g * k_in], any float dtype: V x of the sites side by side.
        cores: [n_rows, g, k_out, k_in] float32, the last row zeros.
        tasks: rows of `cores`.

    Returns:
        [n_tokens, g * k_out] in the dtype of z; the products run in float32.
    """
    _, n_sites, k_out, k_in = cores.shape
    wide = z.float()
    n_single = tasks.single_rows.shape[0]
    parts: list[Tensor] = []
    if n_single:
        gathered = cores.index_select(0, tasks.single_rows).view(n_single * n_sites, k_out, k_in)
        mixed = torch.bmm(gathered, wide[:n_single].view(n_single * n_sites, k_in, 1))
        parts.append(mixed.view(n_single, n_sites * k_out))
    for run in tasks.runs:
        per_site = wide[run.start : run.end].view(-1, n_sites, k_in).transpose(0, 1)
        mixed = torch.bmm(per_site, cores[run.row].transpose(1, 2))
        parts.append(mixed.transpose(0, 1).reshape(-1, n_sites * k_out))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(z.dtype)
