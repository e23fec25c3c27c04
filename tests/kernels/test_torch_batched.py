import pytest
import torch

from onebasis.core.ids import BASE_SLOT
from onebasis.kernels.reference import apply_cores_ref
from onebasis.kernels.torch_batched import apply_cores

SIZES = {"n_tokens": 7, "d_in": 12, "d_out": 20, "k_in": 5, "k_out": 3, "n_slots": 4}


def make_update(dtype=torch.float32, *, n_tokens, d_in, d_out, k_in, k_out, n_slots, seed=0):
    """(x, v, u, cores), no two sizes alike; v and u scaled so that an entry of the update is of order one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_tokens, d_in, generator=generator).to(dtype)
    v = (torch.randn(k_in, d_in, generator=generator) / d_in**0.5).to(dtype)
    u = (torch.randn(k_out, d_out, generator=generator) / k_out**0.5).to(dtype)
    cores = torch.randn(n_slots, k_out, k_in, generator=generator) / k_in**0.5
    return x, v, u, cores


def slots_of(*slots):
    return torch.tensor(slots, dtype=torch.int32)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 3e-2, 2e-2)])
@pytest.mark.parametrize(
    "slots",
    [
        (2, BASE_SLOT, 0, 0, 1, BASE_SLOT, 3),
        (3, 3, 3, 3, 3, 3, 3),
        (0, 1, 2, 3, 0, 1, 2),
        (BASE_SLOT, BASE_SLOT, BASE_SLOT, BASE_SLOT, BASE_SLOT, BASE_SLOT, 1),
    ],
)
def test_a_batch_of_mixed_tasks_matches_the_reference(slots, dtype, rtol, atol):
    args = make_update(dtype, **SIZES)
    got = apply_cores(*args, slots_of(*slots))
    want = apply_cores_ref(*args, slots_of(*slots))
    assert got.dtype is dtype
    torch.testing.assert_close(got.float(), want, rtol=rtol, atol=atol)
    for t, slot in enumerate(slots):
        assert (got[t].count_nonzero() == 0) == (slot == BASE_SLOT), "exactly the base-only tokens are left alone"


@pytest.mark.parametrize("seed", range(5))
def test_random_sizes_match_the_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(zip(SIZES, torch.randperm(30, generator=generator)[: len(SIZES)].add(1).tolist(), strict=True))
    args = make_update(seed=seed, **sizes)
    slots = torch.randint(-1, sizes["n_slots"], (sizes["n_tokens"],), generator=generator).to(torch.int32)
    torch.testing.assert_close(apply_cores(*args, slots), apply_cores_ref(*args, slots), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slot", [BASE_SLOT, 0, 3])
def test_one_token(slot):
    args = make_update(**SIZES | {"n_tokens": 1})
    got = apply_cores(*args, slots_of(slot))
    torch.testing.assert_close(got, apply_cores_ref(*args, slots_of(slot)), rtol=1e-5, atol=1e-5)
    assert (got.count_nonzero() == 0) == (slot == BASE_SLOT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_without_tasks_is_exactly_zero(dtype):
    got = apply_cores(*make_update(dtype, **SIZES), slots_of(*[BASE_SLOT] * 7))
    assert got.shape == (7, 20)
    assert got.count_nonzero() == 0


def test_base_only_tokens_stay_zero_beside_cores_that_are_not_finite():
    x, v, u, cores = make_update(**SIZES)
    cores[0] = torch.nan  # slot 0 is what a careless gather reads for BASE_SLOT
    got = apply_cores(x, v, u, cores, slots_of(BASE_SLOT, 1, 0, BASE_SLOT, 2, 3, 1))
    assert got[[0, 3]].count_nonzero() == 0
    assert got[[1, 4, 5, 6]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_depend_on_the_tasks_of_the_others(dtype):
    args = make_update(dtype, **SIZES)
    alone = apply_cores(*args, slots_of(BASE_SLOT, BASE_SLOT, 2, BASE_SLOT, BASE_SLOT, BASE_SLOT, BASE_SLOT))
    for others in ((0, 1, 2, 3, 0, 1, 2), (3, 3, 2, 3, 3, 3, 3), (BASE_SLOT, 0, 2, 0, BASE_SLOT, 1, 1)):
        crowd = apply_cores(*args, slots_of(*others))
        torch.testing.assert_close(crowd[2], alone[2], rtol=1e-6, atol=1e-7)


def test_a_token_does_not_depend_on_which_tokens_are_beside_it():
    x, v, u, cores = make_update(**SIZES)
    whole = apply_cores(x, v, u, cores, slots_of(2, BASE_SLOT, 0, 0, 1, BASE_SLOT, 3))
    part = apply_cores(x[[4, 2]], v, u, cores, slots_of(1, 0))
    torch.testing.assert_close(part, whole[[4, 2]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("position", "shape"),
    [(0, (6, 12)), (0, (7, 11)), (1, (4, 12)), (1, (5, 13)), (2, (2, 20)), (3, (4, 5, 3)), (3, (4, 3, 1)), (4, (1,))],
    ids=["n_tokens", "d_in of x", "k_in", "d_in of v", "k_out", "core transposed", "core narrow", "one slot for all"],
)
@pytest.mark.parametrize("kernel", [apply_cores, apply_cores_ref])
def test_arguments_that_disagree_are_refused(kernel, position, shape):
    args = [*make_update(**SIZES), slots_of(*[0] * 7)]
    args[position] = torch.zeros(shape, dtype=args[position].dtype)
    with pytest.raises(ValueError, match="needed"):
        kernel(*args)
