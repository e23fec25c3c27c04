from types import SimpleNamespace

import pytest
import torch

from onebasis.kernels import triton_batched
from onebasis.kernels.reference import apply_cores_ref
from onebasis.kernels.select import CoreProduct, add_group_update_
from onebasis.kernels.torch_batched import TaskRun, TokenTasks

D_IN, D_OUTS, K_IN, K_OUT = 12, (20, 7, 9), 5, 3
ZERO_ROW = 4


def make_group(dtype):
    torch.manual_seed(0)
    v = [torch.randn(K_IN, D_IN).to(dtype) for _ in D_OUTS]
    u = [torch.randn(K_OUT, d_out).to(dtype) for d_out in D_OUTS]
    cores = torch.randn(ZERO_ROW + 1, len(D_OUTS), K_OUT, K_IN)
    cores[ZERO_ROW] = 0
    return v, u, cores


def reference(x, y, v, u, cores, rows):
    """Site by site through the definition."""
    parts = [
        apply_cores_ref(x, v[i], u[i], cores[:, i], torch.tensor(rows, dtype=torch.int32)) for i in range(len(D_OUTS))
    ]
    return y.float() + torch.cat(parts, dim=1)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-4, 1e-4), (torch.bfloat16, 3e-2, 0.6)])
@pytest.mark.parametrize(
    ("n_single", "runs"),
    [
        (5, [(5, 9, 1), (9, 12, ZERO_ROW), (12, 13, 2)]),
        (6, []),
        (0, [(0, 4, 3), (4, 11, 0)]),
        (1, [(1, 3, 3)]),
    ],
)
def test_a_group_matches_the_reference_site_by_site(dtype, rtol, atol, n_single, runs):
    v, u, cores = make_group(dtype)
    single = [2, ZERO_ROW, 0, 0, 3, 1][:n_single]
    rows = single + [row for start, end, row in runs for _ in range(end - start)]
    x = torch.randn(len(rows), D_IN).to(dtype)
    y = torch.randn(len(rows), sum(D_OUTS)).to(dtype)
    before = y.clone()
    tasks = TokenTasks(torch.tensor(single, dtype=torch.int64), tuple(TaskRun(*run) for run in runs))
    blocks = torch.block_diag(*[part.float() for part in u]).to(dtype)
    add_group_update_(y, x, torch.cat(v), blocks, cores, CoreProduct(tasks, base_row=ZERO_ROW))
    torch.testing.assert_close(y.float(), reference(x, before, v, u, cores, rows), rtol=rtol, atol=atol)
    for t, row in enumerate(rows):
        if row == ZERO_ROW:
            assert torch.equal(y[t], before[t]), "a base token must be left exactly as it was"


def test_cores_may_be_a_part_of_a_larger_table():
    v, u, cores = make_group(torch.float32)
    n_numbers = cores[0].numel()
    table = torch.randn(ZERO_ROW + 1, n_numbers + 11)
    table[:, 4 : 4 + n_numbers] = cores.flatten(1)
    part = table[:, 4 : 4 + n_numbers].view(cores.shape)
    x = torch.randn(3, D_IN)
    tasks = TokenTasks(torch.tensor([1]), (TaskRun(1, 3, 2),))
    results = []
    for given in (cores, part):
        y = torch.zeros(3, sum(D_OUTS))
        add_group_update_(y, x, torch.cat(v), torch.block_diag(*u), given, CoreProduct(tasks, base_row=ZERO_ROW))
        results.append(y)
    assert torch.equal(*results)


def test_on_a_gpu_the_step_goes_to_triton_with_the_same_tasks(monkeypatch):
    """The choice alone: the kernels have tests of their own, in triton's interpreter."""
    single_rows = SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    calls = []
    monkeypatch.setattr(triton_batched, "is_available", lambda: True)
    monkeypatch.setattr(triton_batched, "mix_cores", lambda *args, base_row: calls.append((*args, base_row)) or "mixed")
    tasks = TokenTasks(single_rows, (TaskRun(2, 40, 1), TaskRun(40, 41, ZERO_ROW)))
    assert CoreProduct(tasks, base_row=ZERO_ROW)("z", "cores") == "mixed"
    ((z, cores, rows, tiles, base_row),) = calls
    assert (z, cores, rows, base_row) == ("z", "cores", single_rows, ZERO_ROW)
    assert (tiles.start, tiles.end) == (2, 41)
    assert tiles.tiles.tolist() == [[2, 34, 1], [34, 40, 1], [40, 41, ZERO_ROW]]
