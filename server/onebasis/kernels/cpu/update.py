"""The update of one layer in compiled C++, for engines whose base layers are not ours; bfloat16 on a CPU."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from onebasis.kernels.cpu.build import CannotBuild, build_library, cpu_flags
from onebasis.kernels.cpu.library import NEEDED_CPU_FLAGS, LayerUpdate, Library

_log = logging.getLogger(__name__)


@cache
def update_library() -> Library | None:
    """Compiled on first use; None where this CPU or machine can't have it, and the log says why."""
    missing = [flag for flag in NEEDED_CPU_FLAGS if flag not in cpu_flags()]
    if missing:
        _log.info("updates run in torch: the CPU lacks %s", ", ".join(missing))
        return None
    try:
        return Library(build_library())
    except (CannotBuild, OSError, RuntimeError) as error:
        _log.warning("updates run in torch, slower: %s", error)
        return None


class NativeUpdate:
    """y += U^T S_t (V x) for the g sites of one layer, under each token's own task; all sums in float32.

    Args:
        v: [g * k_in, d_in]. u: [g * k_out, d_out], each site's rows with numbers in its own columns alone. Both
            bfloat16, contiguous.
        cores: [n_rows, g, k_out, k_in] float32, the last row the base's; may be a view.
        rows: [most tokens] int64, rows of `cores`; read again in every step, not checked.
        columns: where each site's columns of u begin and end.

    Raises:
        ValueError: sizes do not fit.
    """

    def __init__(
        self,
        library: Library,
        v: Tensor,
        u: Tensor,
        cores: Tensor,
        rows: Tensor,
        *,
        columns: Sequence[tuple[int, int]],
    ) -> None:
        n_rows, n_sites, k_out, k_in = cores.shape
        if (v.shape[0], u.shape[0], len(columns), cores.stride(3)) != (n_sites * k_in, n_sites * k_out, n_sites, 1):
            raise ValueError(f"v, u, cores: found {list(v.shape)}, {list(u.shape)}, {list(cores.shape)}")
        self._library = library
        bounds = torch.tensor(columns, dtype=torch.int32)
        self._kept = (v, u, cores, rows, bounds)
        self._most_tokens = rows.shape[0]
        self._width = u.shape[1]
        self._layer = LayerUpdate(
            d_in=v.shape[1], n_sites=n_sites, k_in=k_in, k_out=k_out, u_stride=u.stride(0),
            v=v.data_ptr(), u=u.data_ptr(), columns=bounds.data_ptr(),
            cores=cores.data_ptr(), row_stride=cores.stride(0), site_stride=cores.stride(1), out_stride=cores.stride(2),
            rows=rows.data_ptr(), base_row=n_rows - 1,
        )  # fmt: skip

    def add_(self, y: Tensor, x: Tensor) -> None:
        """Change y [n_tokens, d_out] in place; x: [n_tokens, d_in]. Both bfloat16, each row in one piece.

        Raises:
            ValueError: another size or layout. y is unchanged then.
        """
        layer, n_tokens = self._layer, x.shape[0]
        if (x.shape[1], y.shape, x.stride(1), y.stride(1)) != (layer.d_in, (n_tokens, self._width), 1, 1):
            raise ValueError(f"x, y: found {list(x.shape)}, {list(y.shape)}, strides {x.stride()}, {y.stride()}")
        if x.dtype != torch.bfloat16 or y.dtype != torch.bfloat16 or n_tokens > self._most_tokens:
            raise ValueError(f"x, y: found {x.dtype}, {y.dtype}, {n_tokens} tokens")
        layer.n_tokens = n_tokens
        layer.x, layer.x_stride = x.data_ptr(), x.stride(0)
        layer.y, layer.y_stride = y.data_ptr(), y.stride(0)
        self._library.add_update(layer)
