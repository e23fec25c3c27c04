"""The compiled update of a layer against the definition."""

import pytest
import torch

from onebasis.core.ids import BASE_SLOT
from onebasis.kernels.cpu.update import NativeUpdate
from onebasis.kernels.reference import apply_cores_ref
from tests.native import native_library

N_ROWS = 5


@pytest.fixture(scope="module")
def library():
    return native_library()


def make(library, *, n_tokens, d_in, sizes, k_in, k_out, seed=0):
    """(update, y, x, rows, expected y in float32)"""
    rng = torch.Generator().manual_seed(seed)
    n_sites = len(sizes)
    x = torch.randn(n_tokens, d_in, generator=rng).bfloat16()
    y = torch.randn(n_tokens, sum(sizes), generator=rng).bfloat16()
    v = (torch.randn(n_sites * k_in, d_in, generator=rng) / d_in**0.5).bfloat16()
    u = torch.zeros(n_sites * k_out, sum(sizes)).bfloat16()
    cores = torch.randn(N_ROWS, n_sites, k_out, k_in, generator=rng)
    cores[-1] = float("nan")  # never read
    rows = torch.randint(0, N_ROWS, (n_tokens + 2,), generator=rng)
    slots = torch.where(rows[:n_tokens] == N_ROWS - 1, BASE_SLOT, rows[:n_tokens]).int()
    expected, columns, start = y.float(), [], 0
    for i, size in enumerate(sizes):
        own = (torch.randn(k_out, size, generator=rng) / 4).bfloat16()
        u[i * k_out : (i + 1) * k_out, start : start + size] = own
        expected[:, start : start + size] += apply_cores_ref(x, v[i * k_in : (i + 1) * k_in], own, cores[:, i], slots)
        columns.append((start, start + size))
        start += size
    return NativeUpdate(library, v, u, cores, rows, columns=columns), y, x, rows, expected


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_tokens": 1, "d_in": 64, "sizes": [48, 16, 16], "k_in": 16, "k_out": 16},
        {"n_tokens": 33, "d_in": 50, "sizes": [19, 33], "k_in": 5, "k_out": 3},
        {"n_tokens": 11, "d_in": 7, "sizes": [20], "k_in": 17, "k_out": 18},
    ],
    ids=["one token", "odd sizes, several tiles", "cores wider than a vector"],
)
def test_the_update_is_the_definition_s_to_bfloat16_rounding(library, sizes):
    update, y, x, _, expected = make(library, **sizes)
    update.add_(y, x)
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-3)


def test_no_tokens_are_no_work(library):
    update, y, x, _, _ = make(library, n_tokens=0, d_in=32, sizes=[20, 12], k_in=4, k_out=4)
    update.add_(y, x)
    assert y.shape == (0, 32)


def test_a_token_of_the_base_keeps_every_bit(library):
    update, y, x, rows, _ = make(library, n_tokens=9, d_in=32, sizes=[20, 12], k_in=4, k_out=4)
    before = y.clone()
    update.add_(y, x)
    is_base = rows[:9] == N_ROWS - 1
    assert is_base.any()
    assert torch.equal(y[is_base], before[is_base])
    assert not torch.equal(y[~is_base], before[~is_base])


def test_a_token_s_bits_do_not_depend_on_its_batch(library):
    update, y, x, rows, _ = make(library, n_tokens=23, d_in=70, sizes=[40], k_in=6, k_out=9)
    alone = y.clone()
    update.add_(y, x)
    order = rows.clone()
    for token in range(23):
        rows[0] = order[token]
        update.add_(alone[token : token + 1], x[token : token + 1])
    assert torch.equal(alone, y)


def test_rows_are_read_again_in_every_step(library):
    update, y, x, rows, _ = make(library, n_tokens=3, d_in=32, sizes=[20], k_in=4, k_out=4)
    rows.fill_(N_ROWS - 1)
    before = y.clone()
    update.add_(y, x)
    assert torch.equal(y, before)


def test_what_does_not_fit_is_refused(library):
    update, y, x, _, _ = make(library, n_tokens=3, d_in=32, sizes=[20], k_in=4, k_out=4)
    with pytest.raises(ValueError, match="x, y"):
        update.add_(y[:, :-1], x)
    with pytest.raises(ValueError, match="float32"):
        update.add_(y, x.float())
    with pytest.raises(ValueError, match="6 tokens"):
        update.add_(torch.cat([y, y]), torch.cat([x, x]))
