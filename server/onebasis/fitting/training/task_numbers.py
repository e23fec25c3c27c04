"""One task's numbers while they are trained."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class TaskNumbers:
    """Flat numbers [n] float32, and each site's part of them, in the sites' order.

    Invariant: the parts are leaves of autograd that share their memory with `flat`, and their gradients with
    `flat.grad`. So backward through the sites fills one gradient, and an optimiser of `flat` moves every part.
    They start at zero.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        ends = np.cumsum([0, *map(prod, shapes)]).tolist()
        self.flat = nn.Parameter(torch.zeros(ends[-1]))
        self.flat.grad = torch.zeros(ends[-1])
        self.parts = tuple(
            _leaf(self.flat.detach()[start:end], self.flat.grad[start:end], shape)
            for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
        )

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.parts)

    def load(self, values: NDArray[np.floating[Any]]) -> None:
        """Set all numbers, [n] of any float type, so that what is scored can be what is stored."""
        with torch.no_grad():
            self.flat.copy_(torch.from_numpy(values.astype(np.float32)))

    def stored(self) -> NDArray[np.float16]:
        """[n] float16, as a coefficient file holds them: site after site, row-major."""
        return self.flat.detach().to(torch.float16).numpy()


def _leaf(values: Tensor, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    leaf = values.view(shape).requires_grad_()
    leaf.grad = gradient.view(shape)
    return leaf
