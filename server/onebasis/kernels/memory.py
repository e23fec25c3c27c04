"""Large tables of which only a part may ever be used."""

import math

import numpy as np
import torch
from torch import Tensor


def zeros_on_demand(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros like torch.zeros; on a CPU the system gives the memory page by page as it is first written.

    torch.zeros writes every page at once; calloc, which numpy uses, does not.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    n_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(n_bytes, dtype=np.uint8)).view(dtype).view(shape)
