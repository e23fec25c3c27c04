"""The core product and the expansion of coefficients as Triton kernels, for a GPU. The two shared GEMMs stay torch's.

The core product is what select.py uses on a GPU, the expansion what coefficients/expansion.py does.
Triton itself is imported on first use, so this module can be imported where it is not installed.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from onebasis.core.errors import SetupError
from onebasis.core.ids import BASE_SLOT

_TILE_TOKENS: Final = 32
_LEAST_DOT: Final = 16  # tl.dot takes no smaller side
_EXPAND_BLOCK: Final = 1024
_FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)


def is_available() -> bool:
    """Whether triton is installed. The kernels also need a GPU, or triton's interpreter."""
    return importlib.util.find_spec("triton") is not None


@dataclass(frozen=True, slots=True)
class RunTiles:
    """Runs of tokens cut into tiles; made by `plan_runs` once a step and used at every site.

    tiles: [n_tiles, 3] int32, the first token, the end and the row of the cores of each tile. The runs cover the
    tokens `start` to `end` of the step.
    """

    start: int
    end: int
    tiles: Tensor


def plan_runs(bounds: Sequence[int], rows: Sequence[int], *, device: torch.device) -> RunTiles:
    """Cut runs of tokens, each of one task, into the tiles that the prefill kernel works on.

    Args:
        bounds: n_runs + 1 token numbers, rising; run i is the tokens bounds[i] to bounds[i + 1].
        rows: n_runs rows of the cores, or the base row.

    Raises:
        ValueError: the counts disagree, there is no run, or one is empty.
    """
    if not rows or len(bounds) != len(rows) + 1:
        raise ValueError(f"needed a run or more and one bound more than runs, found {len(rows)} and {len(bounds)}")
    tiles: list[tuple[int, int, int]] = []
    for start, end, row in zip(bounds, bounds[1:], rows, strict=False):
        if not 0 <= start < end:
            raise ValueError(f"bounds: needed rising token numbers, found {start} and then {end}")
        tiles += [(first, min(first + _TILE_TOKENS, end), row) for first in range(start, end, _TILE_TOKENS)]
    table = torch.tensor(tiles, dtype=torch.int32).to(device)
    return RunTiles(bounds[0], bounds[-1], table)


def mix_cores(
    z: Tensor, cores: Tensor, single_rows: Tensor, runs: RunTiles | None = None, *, base_row: int = BASE_SLOT
) -> Tensor:
    """Each token's z under the core of its own task, at the g sites of a group.

        mixed[t, i * k_out :][: k_out] = cores[row_t, i] @ z[t, i * k_in :][: k_in]        for each site i < g

    Args:
        z: [n_tokens, g * k_in] float32, bfloat16 or float16: V x of the sites side by side. Any strides.
        cores: [n_rows, g, k_out, k_in] float32, any strides: a view of the arena is not copied.
        single_rows: [n_single] int32 or int64, contiguous, the rows of the first tokens, which may be none.
        runs: the tokens behind them; None when there are none.
        base_row: a token with this row gets exact zeros and no core is read for it, whatever that row may hold.

    Returns:
        [n_tokens, g * k_out] in the dtype of z, products and sums in float32. NaN for a token whose row is
        neither in `cores` nor base_row.

    Raises:
        ValueError: sizes, dtypes or devices do not fit. Nothing is broadcast or cut to fit.
        SetupError: triton is not installed.

    Source: the gathered product is BGMV of Punica, arXiv 2310.18547, between the shared products of "Compress then
    Serve", arXiv 2407.00066.
    """
    _check_mix(z, cores, single_rows, runs)
    _, n_sites, k_out, k_in = cores.shape
    n_single = single_rows.shape[0]
    mixed = z.new_empty(z.shape[0], n_sites * k_out)
    mix_tokens = _kernel("core_product", "mix_tokens_kernel", z)
    mix_runs = _kernel("core_product", "mix_runs_kernel", z)
    strides = (*z.stride(), mixed.stride(0), *cores.stride())
    with torch.cuda.device(z.get_device()):
        if n_single:
            sizes = {"out_size": _power_of_two(k_out), "in_size": _power_of_two(k_in)}
            mix_tokens[(n_single, n_sites)](
                z, cores, single_rows, mixed, cores.shape[0], base_row, *strides, k_out=k_out, k_in=k_in, **sizes
            )
        if runs is not None:
            sizes = {"out_size": _power_of_two(k_out, _LEAST_DOT), "in_size": _power_of_two(k_in, _LEAST_DOT)}
            mix_runs[(runs.tiles.shape[0], n_sites)](
                z, cores, runs.tiles, mixed, cores.shape[0], base_row, *strides,
                k_out=k_out, k_in=k_in, tile_size=_TILE_TOKENS, **sizes,
            )  # fmt: skip
    return mixed


@dataclass(frozen=True, slots=True)
class Expansion:
    """Where a task's coefficients go in its row of the arena; made by `plan_expansion`.

    sites: [n_sites, 6] int64, as `expand_kernel` reads it.
    """

    is_diag: bool
    n_numbers: int
    n_core_numbers: int
    largest_core: int
    sites: Tensor


def plan_expansion(
    form: str,
    core_sizes: Sequence[tuple[int, int]],
    used_sizes: Sequence[tuple[int, int]],
    *,
    device: torch.device,
) -> Expansion:
    """Lay out all sites of a basis for `expand_`. Tasks of one form, prefix and choice of sites share the result.

    Args:
        form: "core", all numbers of the used part of each core, row-major; "diag", its diagonal.
        core_sizes: (k_out, k_in) of every site, in the basis's order.
        used_sizes: (rows, columns) of each core that the coefficients fill; (0, 0) for a site they do not name.

    Raises:
        ValueError: the counts disagree, there is no site, the form is unknown, or a used part does not fit its core.
    """
    if form not in ("core", "diag"):
        raise ValueError(f"form: needed 'core' or 'diag', found {form!r}")
    if len(core_sizes) != len(used_sizes) or not core_sizes:
        raise ValueError(f"needed one used size for each site, found {len(used_sizes)} for {len(core_sizes)}")
    fields = []
    core_start = first = 0
    for (k_out, k_in), (used_out, used_in) in zip(core_sizes, used_sizes, strict=True):
        if not (0 <= used_out <= k_out and 0 <= used_in <= k_in):
            raise ValueError(f"used size: needed at most {(k_out, k_in)}, found {(used_out, used_in)}")
        fields.append((core_start, k_out, k_in, first, used_out, used_in))
        core_start += k_out * k_in
        first += used_out * used_in if form == "core" else min(used_out, used_in)
    largest = max(k_out * k_in for k_out, k_in in core_sizes)
    return Expansion(form == "diag", first, core_start, largest, torch.tensor(fields, dtype=torch.int64).to(device))


def expand_(row: Tensor, numbers: Tensor, expansion: Expansion) -> None:
    """Write the full cores of a task into its row of the arena, all sites in one launch.

    Args:
        row: [n_core_numbers] float32, contiguous, overwritten: zeros where the coefficients say nothing.
        numbers: [n_numbers] float16, bfloat16 or float32, contiguous: the coefficients in the width of their file.
        expansion: made for the basis and for these coefficients.

    Raises:
        ValueError: sizes, dtypes or devices do not fit. The row is unchanged then.
        SetupError: triton is not installed.
    """
    needed = ((expansion.n_core_numbers,), (expansion.n_numbers,))
    found = (tuple(row.shape), tuple(numbers.shape))
    if needed != found:
        raise ValueError(f"row, numbers: needed {needed}, found {found}")
    if row.dtype is not torch.float32 or numbers.dtype not in _FLOATS:
        raise ValueError(f"row, numbers: needed float32 and 16 or 32 bits, found {row.dtype}, {numbers.dtype}")
    if not (row.is_contiguous() and numbers.is_contiguous()):
        raise ValueError("row, numbers: needed contiguous tensors")
    _check_same_device(row, numbers, expansion.sites)
    kernel = _kernel("expansion", "expand_kernel", row)
    block_size = min(_power_of_two(expansion.largest_core), _EXPAND_BLOCK)
    grid = (expansion.sites.shape[0], -(-expansion.largest_core // block_size))
    with torch.cuda.device(row.get_device()):
        kernel[grid](numbers, expansion.sites, row, is_diag=expansion.is_diag, block_size=block_size)


def _check_mix(z: Tensor, cores: Tensor, single_rows: Tensor, runs: RunTiles | None) -> None:
    if cores.ndim != 4 or z.ndim != 2 or single_rows.ndim != 1:
        found = (z.ndim, cores.ndim, single_rows.ndim)
        raise ValueError(f"z, cores, single_rows: needed (2, 4, 1) axes, found {found}")
    _, n_sites, _, k_in = cores.shape
    if z.shape[1] != n_sites * k_in:
        raise ValueError(f"z: needed {n_sites} * {k_in} columns, found {z.shape[1]}")
    n_single = single_rows.shape[0]
    covered = (n_single, n_single) if runs is None else (runs.start, runs.end)
    if covered != (n_single, z.shape[0]):
        raise ValueError(f"runs: needed tokens {n_single} to {z.shape[0]}, found {covered[0]} to {covered[1]}")
    if z.dtype not in _FLOATS or cores.dtype is not torch.float32:
        raise ValueError(f"z, cores: needed a float of 16 or 32 bits and float32, found {z.dtype}, {cores.dtype}")
    if single_rows.dtype not in (torch.int32, torch.int64) or not single_rows.is_contiguous():
        raise ValueError(f"single_rows: needed contiguous int32 or int64, found {single_rows.dtype}")
    _check_same_device(z, cores, single_rows, *([] if runs is None else [runs.tiles]))


def _check_same_device(*tensors: Tensor) -> None:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"needed tensors on one device, found {', '.join(sorted(map(str, devices)))}")


def _kernel(module: str, name: str, tensor: Tensor) -> Any:
    """A kernel that can run where `tensor` is.

    Raises:
        SetupError: triton is not installed.
        ValueError: the kernel is compiled for a GPU and the tensor is not there.
    """
    try:
        kernel = getattr(importlib.import_module(f"onebasis.kernels.triton_sources.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise SetupError("the Triton kernels need triton, which is not installed; pip install triton") from error
    if tensor.device.type == "cpu" and not type(kernel).__name__.startswith("Interpreted"):
        raise ValueError("needed tensors on a GPU, found cpu; TRITON_INTERPRET=1 from the start runs the kernels there")
    return kernel


def _power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that holds n and `least`, itself one."""
    return max(least, 1 << (n - 1).bit_length())
