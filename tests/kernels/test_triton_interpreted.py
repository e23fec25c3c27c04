"""What the Triton kernels compute, run by triton's interpreter on the CPU.

Triton decides at its import whether it interprets, so the kernels run in a process of their own.
"""

import dataclasses
import importlib.util
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from onebasis.coefficients.basis_file import SiteSpec
from onebasis.coefficients.container import RawTensor
from onebasis.coefficients.expansion import DeviceExpansion
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.ids import BASE_SLOT
from onebasis.kernels.reference import apply_cores_ref
from onebasis.kernels.triton_batched import expand_, mix_cores, plan_expansion, plan_runs
from tests.coefficients.builders import basis_spec, coefficients, edited

CPU = torch.device("cpu")
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-2, 1e-3), torch.float16: (2e-3, 1e-3)}
SINGLES = (2, BASE_SLOT, 0, 3, 3)
RUNS = ((1, 1), (35, 3), (7, BASE_SLOT), (70, 0), (32, 1))  # (tokens, row); a tile is 32 tokens


@pytest.fixture(scope="module")
def interpreted():
    """Calls a function in the process that interprets."""
    if importlib.util.find_spec("triton") is None:
        pytest.fail("triton is not installed: pip install -e '.[dev]'")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start_interpreter) as pool:
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result(timeout=60)


def start_interpreter():
    assert "triton" not in sys.modules, "something imported triton before it was told to interpret"
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def make_group(dtype=torch.float32, *, n_tokens, n_sites, k_out, k_in, n_rows=4, seed=0):
    """(z, cores) as parts of wider tables, NaN around them: whoever reads beside them shows it."""
    generator = torch.Generator().manual_seed(seed)
    n_core = n_sites * k_out * k_in
    arena = torch.full((n_rows, n_core + 11), torch.nan)
    arena[:, 5 : 5 + n_core] = torch.randn(n_rows, n_core, generator=generator) / k_in**0.5
    wide = torch.full((n_tokens + 2, n_sites * k_in + 6), torch.nan, dtype=dtype)
    wide[1:-1, 3:-3] = torch.randn(n_tokens, n_sites * k_in, generator=generator).to(dtype)
    return wide[1:-1, 3:-3], arena[:, 5 : 5 + n_core].view(n_rows, n_sites, k_out, k_in)


def make_rows(singles, runs):
    """(single_rows, runs or None, the row of every token)."""
    bounds = [len(singles)]
    for n_tokens, _ in runs:
        bounds.append(bounds[-1] + n_tokens)
    tiles = plan_runs(bounds, [row for _, row in runs], device=CPU) if runs else None
    rows = [*singles, *(row for n_tokens, row in runs for _ in range(n_tokens))]
    return torch.tensor(singles, dtype=torch.int32), tiles, torch.tensor(rows, dtype=torch.int32)


def mix_cores_ref(z, cores, rows):
    """The reference, with factors that change nothing."""
    _, n_sites, k_out, k_in = cores.shape
    sites = [apply_cores_ref(z_i, torch.eye(k_in), torch.eye(k_out), cores[:, i], rows)
             for i, z_i in enumerate(z.split(k_in, dim=1))]  # fmt: skip
    assert len(sites) == n_sites
    return torch.cat(sites, dim=1)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("n_sites", "k_out", "k_in"), [(3, 5, 12), (2, 33, 20), (1, 16, 16), (4, 1, 3), (2, 48, 64), (3, 17, 1)]
)
def test_singles_and_runs_match_the_reference(interpreted, n_sites, k_out, k_in, dtype):
    single_rows, runs, rows = make_rows(SINGLES, RUNS)
    z, cores = make_group(dtype, n_tokens=len(rows), n_sites=n_sites, k_out=k_out, k_in=k_in)
    got = interpreted(mix_cores, z, cores, single_rows, runs)
    rtol, atol = TOLERANCES[dtype]
    assert got.dtype is dtype
    torch.testing.assert_close(got.float(), mix_cores_ref(z, cores, rows), rtol=rtol, atol=atol)
    assert got[rows == BASE_SLOT].count_nonzero() == 0, "a base token gets exact zeros"


@pytest.mark.parametrize("seed", range(4))
def test_random_batches_match_the_reference(interpreted, seed):
    generator = torch.Generator().manual_seed(seed)
    n_sites, k_out, k_in, n_rows, n_single = (torch.randperm(24, generator=generator)[:5] + 1).tolist()
    singles = torch.randint(-1, n_rows, (n_single,), generator=generator).tolist()
    lengths, tasks = (torch.randint(low, 40, (3,), generator=generator).tolist() for low in (1, -1))
    runs = [(n, task % (n_rows + 1) - 1) for n, task in zip(lengths, tasks, strict=True)]
    single_rows, tiles, rows = make_rows(singles, runs)
    n_sites = n_sites % 4 + 1
    z, cores = make_group(n_tokens=len(rows), n_sites=n_sites, k_out=k_out, k_in=k_in, n_rows=n_rows, seed=seed)
    got = interpreted(mix_cores, z, cores, single_rows, tiles)
    torch.testing.assert_close(got, mix_cores_ref(z, cores, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("singles", "runs"), [((1,), ()), ((BASE_SLOT,), ()), ((), ((1, 2),)), ((), ((33, 2), (2, 0)))]
)
def test_a_step_of_only_singles_or_only_runs(interpreted, singles, runs):
    single_rows, tiles, rows = make_rows(singles, runs)
    z, cores = make_group(n_tokens=len(rows), n_sites=2, k_out=3, k_in=5)
    got = interpreted(mix_cores, z, cores, single_rows.long(), tiles)
    torch.testing.assert_close(got, mix_cores_ref(z, cores, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base_row", [BASE_SLOT, 0, 3])
def test_a_base_token_is_zero_whatever_lies_around_it(interpreted, base_row):
    single_rows, runs, rows = make_rows((1, base_row, 2), ((2, 1), (34, base_row), (3, 2)))
    z, cores = make_group(n_tokens=len(rows), n_sites=3, k_out=5, k_in=4)
    wanted = mix_cores_ref(z, cores, rows)
    cores[[0, 3]] = torch.nan
    z[rows == base_row] = torch.inf
    got = interpreted(mix_cores, z, cores, single_rows, runs, base_row=base_row)
    assert got[rows == base_row].eq(0).all()
    torch.testing.assert_close(got[rows != base_row], wanted[rows != base_row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strange", [-2, 4, 2**31 - 1])
def test_a_row_that_the_cores_do_not_have_gives_nan_to_its_tokens_alone(interpreted, strange):
    single_rows, runs, rows = make_rows((1, strange, BASE_SLOT), ((2, 1), (34, strange), (3, 2)))
    z, cores = make_group(n_tokens=len(rows), n_sites=3, k_out=5, k_in=4)
    got = interpreted(mix_cores, z, cores, single_rows, runs)
    assert got[rows == strange].isnan().all()
    assert got[rows != strange].isfinite().all()


def test_cores_may_lie_in_memory_in_any_order(interpreted):
    single_rows, runs, rows = make_rows(SINGLES, RUNS)
    z, cores = make_group(n_tokens=len(rows), n_sites=3, k_out=5, k_in=12)
    turned = cores.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    z_turned = z.T.contiguous().T
    got = interpreted(mix_cores, z_turned, turned, single_rows, runs)
    torch.testing.assert_close(got, mix_cores_ref(z, cores, rows), rtol=1e-5, atol=1e-5)


def test_an_arena_of_more_than_2_to_the_31_numbers(interpreted, tmp_path):
    got, wanted = interpreted(mix_in_a_huge_arena, tmp_path / "arena")
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def mix_in_a_huge_arena(path):
    """(mixed, wanted) with rows 2**30 numbers apart, in a file of which only the pages in use exist."""
    table = torch.from_numpy(np.memmap(path, dtype=np.float32, mode="w+", shape=(3 << 30,)))
    z, cores = make_group(n_tokens=4, n_sites=2, k_out=3, k_in=5, n_rows=3)
    far = table.as_strided(cores.shape, (1 << 30, *cores.stride()[1:]))
    far.copy_(cores)
    single_rows, runs, rows = make_rows((2, 1), ((2, 2),))
    return mix_cores(z, far, single_rows, runs), mix_cores_ref(z, cores, rows)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("chosen", [None, (1,), (0, 2)])
@pytest.mark.parametrize(("form", "k"), [("core", None), ("core", 3), ("diag", None), ("diag", 1), ("diag", 4)])
def test_expansion_gives_what_the_host_gives(interpreted, form, k, chosen, dtype):
    compare_expansion(interpreted, basis_spec(), form, k, chosen, dtype)


@pytest.mark.parametrize(("form", "k"), [("core", None), ("core", 37), ("diag", None), ("diag", 37)])
def test_expansion_of_cores_larger_than_a_block(interpreted, form, k):
    sizes = [(40, 50), (3, 7), (64, 33), (2, 2)]
    sites = tuple(SiteSpec(f"layer.{i}", 70, 80, k_in, k_out) for i, (k_out, k_in) in enumerate(sizes))
    compare_expansion(interpreted, dataclasses.replace(basis_spec(), sites=sites), form, k, None, "F16")


def compare_expansion(interpreted, basis, form, k, chosen, dtype):
    """Expand a file's coefficients into the middle row of three and compare with what the file itself gives."""
    names = None if chosen is None else tuple(basis.sites[i].name for i in chosen)
    data = coefficients(basis, form=form, k=k, sites=names, seed=3, dtype=np.float32)
    numbers = torch.from_numpy(parse_coefficients(data).numbers().copy())
    numbers = numbers.to({"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype])
    stored = RawTensor(dtype, tuple(numbers.shape), numbers.view(torch.uint8).numpy().tobytes())
    bound = bind(parse_coefficients(edited(data, tensors={"coefficients": stored})), basis)
    wanted = bound.flat_cores()
    used = [site.core_shape(k) if names is None or site.name in names else (0, 0) for site in basis.sites]
    plan = plan_expansion(form, [site.core_shape() for site in basis.sites], used, device=CPU)
    table = interpreted(expanded_table, numbers, plan)
    assert table[1].tolist() == wanted.tolist()
    assert table[[0, 2]].isnan().all(), "the rows of other tasks are left alone"
    (cores,) = interpreted(expanded_as_the_arena_does, [bound])
    assert cores.tolist() == wanted.tolist()


def expanded_table(numbers, plan):
    table = torch.full((3, plan.n_core_numbers), torch.nan)
    expand_(table[1], numbers, plan)
    return table


def test_tasks_of_many_layouts_expand_one_after_the_other(interpreted):
    basis = basis_spec()
    names = [site.name for site in basis.sites]
    layouts = [("core", None, None), ("diag", None, None), ("core", 2, None), ("core", None, (names[1],)),
               ("diag", 2, (names[0], names[2])), ("core", 2, (names[1],)), ("core", None, None)]  # fmt: skip
    tasks = [
        bind(parse_coefficients(coefficients(basis, form=form, k=k, sites=sites, seed=seed)), basis)
        for seed, (form, k, sites) in enumerate(layouts)
    ]
    for cores, task in zip(interpreted(expanded_as_the_arena_does, tasks), tasks, strict=True):
        assert cores.tolist() == task.flat_cores().tolist()


def expanded_as_the_arena_does(tasks):
    """Full cores of tasks of one basis, through one expansion."""
    expand = DeviceExpansion(tasks[0].basis, CPU)
    return [expand(task) for task in tasks]
