"""Two ways in which LoRA servers compute a batch of different tasks, in plain torch, to compare with."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraSite:
    """A base weight [d_out, d_in], and the adapters of all tasks: a [n_tasks, r, d_in], b [n_tasks, d_out, r]."""

    weight: Tensor
    a: Tensor
    b: Tensor


def lora_loop(site: LoraSite, x: Tensor, tasks: Tensor) -> Tensor:
    """PEFT's mixed batch: for each task the tokens that are its own, through its A and B.

    Args:
        x: [n_tokens, d_in]. tasks: [n_tokens] int64.

    Returns:
        [n_tokens, d_out]
    """
    y = F.linear(x, site.weight)
    for task in sorted(set(tasks.tolist())):
        rows = (tasks == task).nonzero().flatten()
        y.index_add_(0, rows, F.linear(F.linear(x.index_select(0, rows), site.a[task]), site.b[task]))
    return y


def lora_gather(site: LoraSite, x: Tensor, tasks: Tensor) -> Tensor:
    """BGMV (Punica): A and B of every token are gathered, then multiplied as a batch. Arguments as `lora_loop`."""
    y = F.linear(x, site.weight)
    z = torch.bmm(site.a.index_select(0, tasks), x.unsqueeze(2))
    return y.add_(torch.bmm(site.b.index_select(0, tasks), z).squeeze(2))
