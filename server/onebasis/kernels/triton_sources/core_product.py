"""Device code of the core product: each token's own tiny core times its z = V x. Launched by triton_batched.py.

Both kernels write zeros for a base token without reading a core, and NaN for a row that the cores do not have: a row
number lives on the device, where nobody can raise, and another task's numbers must never come out instead.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_rows", "base_row"])  # type: ignore[untyped-decorator]
def mix_tokens_kernel(
    z_ptr: tl.tensor,
    cores_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    mixed_ptr: tl.tensor,
    n_rows: tl.tensor,
    base_row: tl.tensor,
    z_token_stride: tl.tensor,
    z_number_stride: tl.tensor,
    mixed_token_stride: tl.tensor,
    core_row_stride: tl.tensor,
    core_site_stride: tl.tensor,
    core_out_stride: tl.tensor,
    core_in_stride: tl.tensor,
    k_out: tl.constexpr,
    k_in: tl.constexpr,
    out_size: tl.constexpr,
    in_size: tl.constexpr,
) -> None:
    """One token at one site. Grid (n_tokens, n_sites); out_size, in_size: powers of two that hold k_out, k_in."""
    token = tl.program_id(0).to(tl.int64)
    site = tl.program_id(1)
    row = tl.load(rows_ptr + token).to(tl.int64)
    i_out = tl.arange(0, out_size)
    mixed = tl.zeros([out_size], dtype=tl.float32)
    if row != base_row:
        i_in = tl.arange(0, in_size)
        is_there = (row >= 0) & (row < n_rows)
        z_at = z_ptr + token * z_token_stride + (site * k_in + i_in) * z_number_stride
        z = tl.load(z_at, mask=i_in < k_in, other=0.0).to(tl.float32)
        core_at = cores_ptr + row * core_row_stride + site * core_site_stride
        core_at = core_at + i_out[:, None] * core_out_stride + i_in[None, :] * core_in_stride
        inside = (i_out[:, None] < k_out) & (i_in[None, :] < k_in)
        core = tl.load(core_at, mask=inside & is_there, other=0.0)
        mixed = tl.where(is_there, tl.sum(core * z[None, :], axis=1), float("nan"))
    mixed_at = mixed_ptr + token * mixed_token_stride + site * k_out + i_out
    tl.store(mixed_at, mixed.to(mixed_ptr.dtype.element_ty), mask=i_out < k_out)


@triton.jit(do_not_specialize=["n_rows", "base_row"])  # type: ignore[untyped-decorator]
def mix_runs_kernel(
    z_ptr: tl.tensor,
    cores_ptr: tl.tensor,
    tiles_ptr: tl.tensor,
    mixed_ptr: tl.tensor,
    n_rows: tl.tensor,
    base_row: tl.tensor,
    z_token_stride: tl.tensor,
    z_number_stride: tl.tensor,
    mixed_token_stride: tl.tensor,
    core_row_stride: tl.tensor,
    core_site_stride: tl.tensor,
    core_out_stride: tl.tensor,
    core_in_stride: tl.tensor,
    k_out: tl.constexpr,
    k_in: tl.constexpr,
    tile_size: tl.constexpr,
    out_size: tl.constexpr,
    in_size: tl.constexpr,
) -> None:
    """Up to tile_size tokens of one task at one site. Grid (n_tiles, n_sites); tiles [n_tiles, 3]: start, end, row.

    The product is exact float32 (no TF32). out_size, in_size: powers of two from 16, the least that tl.dot takes.
    """
    tile = tl.program_id(0)
    site = tl.program_id(1)
    start = tl.load(tiles_ptr + tile * 3).to(tl.int64)
    end = tl.load(tiles_ptr + tile * 3 + 1).to(tl.int64)
    row = tl.load(tiles_ptr + tile * 3 + 2).to(tl.int64)
    token = start + tl.arange(0, tile_size)
    i_out = tl.arange(0, out_size)
    mixed = tl.zeros([tile_size, out_size], dtype=tl.float32)
    if row != base_row:
        i_in = tl.arange(0, in_size)
        is_there = (row >= 0) & (row < n_rows)
        z_at = z_ptr + token[:, None] * z_token_stride + (site * k_in + i_in[None, :]) * z_number_stride
        z = tl.load(z_at, mask=(token[:, None] < end) & (i_in[None, :] < k_in), other=0.0).to(tl.float32)
        core_at = cores_ptr + row * core_row_stride + site * core_site_stride
        core_at = core_at + i_in[:, None] * core_in_stride + i_out[None, :] * core_out_stride
        inside = (i_in[:, None] < k_in) & (i_out[None, :] < k_out)
        core = tl.load(core_at, mask=inside & is_there, other=0.0)
        mixed = tl.where(is_there, tl.dot(z, core, input_precision="ieee"), float("nan"))
    mixed_at = mixed_ptr + token[:, None] * mixed_token_stride + site * k_out + i_out[None, :]
    inside = (token[:, None] < end) & (i_out[None, :] < k_out)
    tl.store(mixed_at, mixed.to(mixed_ptr.dtype.element_ty), mask=inside)
