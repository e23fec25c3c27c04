"""What the wrappers of the Triton kernels refuse, and what they do without triton. No kernel runs here."""

import subprocess
import sys

import pytest
import torch

from onebasis.core.errors import SetupError
from onebasis.kernels import triton_batched
from onebasis.kernels.triton_batched import expand_, mix_cores, plan_expansion, plan_runs

CPU = torch.device("cpu")


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("onebasis.kernels.triton_sources.")]:
        monkeypatch.delitem(sys.modules, name)


def mix_arguments():
    """z, cores, single_rows, runs of a step with 3 single tokens and a run of 4."""
    return [
        torch.ones(7, 2 * 5),
        torch.ones(4, 2, 3, 5),
        torch.zeros(3, dtype=torch.int32),
        plan_runs([3, 7], [1], device=CPU),
    ]


def test_the_module_can_be_imported_without_importing_triton():
    code = "import sys, onebasis.kernels.triton_batched; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_use_without_triton_says_what_to_install(without_triton):
    assert not triton_batched.is_available()
    with pytest.raises(SetupError, match="pip install triton"):
        mix_cores(*mix_arguments())
    plan = plan_expansion("diag", [(3, 5)], [(3, 5)], device=CPU)
    with pytest.raises(SetupError, match="pip install triton"):
        expand_(torch.zeros(15), torch.ones(3), plan)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, torch.ones(7, 11), "2 \\* 5 columns"),
        (0, torch.ones(8, 10), "tokens 3 to 8"),
        (0, torch.ones(7, 10, dtype=torch.float64), "float64"),
        (0, torch.ones(7, 2, 5), "axes"),
        (0, torch.ones(7, 10, device="meta"), "one device, found cpu, meta"),
        (1, torch.ones(4, 2, 5, 3), "2 \\* 3 columns"),
        (1, torch.ones(4, 3, 5), "axes"),
        (1, torch.ones(4, 2, 3, 5, dtype=torch.float16), "float16"),
        (2, torch.zeros(4, dtype=torch.int32), "tokens 4 to 7"),
        (2, torch.zeros(3), "int32 or int64"),
        (2, torch.zeros(6, dtype=torch.int32)[::2], "contiguous"),
        (3, None, "tokens 3 to 7"),
        (3, plan_runs([3, 6], [1], device=CPU), "tokens 3 to 7"),
        (3, plan_runs([4, 7], [1], device=CPU), "tokens 3 to 7"),
    ],
)
def test_arguments_that_disagree_are_refused(position, wrong, message):
    arguments = mix_arguments()
    arguments[position] = wrong
    with pytest.raises(ValueError, match=message):
        mix_cores(*arguments)


def test_runs_are_cut_into_tiles_of_one_task_each():
    runs = plan_runs([2, 35, 36, 100], [4, -1, 7], device=CPU)
    assert (runs.start, runs.end) == (2, 100)
    assert runs.tiles.tolist() == [[2, 34, 4], [34, 35, 4], [35, 36, -1], [36, 68, 7], [68, 100, 7]]


@pytest.mark.parametrize(
    ("bounds", "rows"), [([0], []), ([0, 3], [1, 2]), ([0, 3, 3], [1, 2]), ([3, 1], [0]), ([-1, 1], [0])]
)
def test_runs_that_make_no_sense_are_refused(bounds, rows):
    with pytest.raises(ValueError, match="needed"):
        plan_runs(bounds, rows, device=CPU)


@pytest.mark.parametrize(("form", "n_numbers"), [("core", 3 * 4 + 2 * 2), ("diag", 3 + 2)])
def test_a_plan_counts_the_numbers_of_a_file(form, n_numbers):
    plan = plan_expansion(form, [(3, 5), (6, 2), (2, 2)], [(3, 4), (0, 0), (2, 2)], device=CPU)
    assert (plan.n_numbers, plan.n_core_numbers, plan.largest_core) == (n_numbers, 15 + 12 + 4, 15)


@pytest.mark.parametrize(
    ("form", "core_sizes", "used_sizes"),
    [
        ("vector", [(3, 5)], [(3, 5)]),
        ("core", [], []),
        ("core", [(3, 5)], [(3, 5), (1, 1)]),
        ("core", [(3, 5)], [(5, 3)]),
        ("diag", [(3, 5)], [(3, -1)]),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(form, core_sizes, used_sizes):
    with pytest.raises(ValueError, match="needed"):
        plan_expansion(form, core_sizes, used_sizes, device=CPU)


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (torch.zeros(14), torch.ones(15)),
        (torch.zeros(15), torch.ones(16)),
        (torch.zeros(15, dtype=torch.float16), torch.ones(15)),
        (torch.zeros(15), torch.ones(15, dtype=torch.uint16)),
        (torch.zeros(15, 2)[:, 0], torch.ones(15)),
        (torch.zeros(15), torch.ones(30)[::2]),
        (torch.zeros(15), torch.ones(15, device="meta")),
    ],
)
def test_an_expansion_that_does_not_fit_is_refused(row, numbers):
    plan = plan_expansion("core", [(3, 5)], [(3, 5)], device=CPU)
    with pytest.raises(ValueError, match="needed"):
        expand_(row, numbers, plan)
    assert row.count_nonzero() == 0
