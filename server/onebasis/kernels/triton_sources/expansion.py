"""Device code that expands one task's coefficients into its row of the arena. Launched by triton_batched.py."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def expand_kernel(
    numbers_ptr: tl.tensor,
    sites_ptr: tl.tensor,
    row_ptr: tl.tensor,
    is_diag: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    """block_size numbers of one site's core. Grid (n_sites, blocks of the largest core).

    sites [n_sites, 6]: where the core starts in the row, k_out, k_in, where its coefficients start, and how many
    rows and columns of the core they fill. The rest of the core becomes zero, so every number of the row is written.
    """
    site = tl.program_id(0)
    core_start = tl.load(sites_ptr + site * 6)
    k_out = tl.load(sites_ptr + site * 6 + 1)
    k_in = tl.load(sites_ptr + site * 6 + 2)
    first = tl.load(sites_ptr + site * 6 + 3)
    used_out = tl.load(sites_ptr + site * 6 + 4)
    used_in = tl.load(sites_ptr + site * 6 + 5)
    at = tl.program_id(1) * block_size + tl.arange(0, block_size)
    i_out = at // k_in
    i_in = at % k_in
    is_used = (i_out < used_out) & (i_in < used_in)
    if is_diag:
        is_used = is_used & (i_out == i_in)
        source = first + i_out
    else:
        source = first + i_out * used_in + i_in
    number = tl.load(numbers_ptr + source, mask=is_used, other=0.0).to(tl.float32)
    tl.store(row_ptr + core_start + at, number, mask=at < k_out * k_in)
