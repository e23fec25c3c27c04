"""The compiled library by itself; what it computes together is in tests/model/test_native_decoder.py."""

from pathlib import Path

import pytest
import torch

from onebasis.kernels.cpu.build import CannotBuild, build_library
from tests.native import native_library


@pytest.fixture(scope="module")
def library():
    return native_library()


def test_panels_hold_pairs_of_columns_and_zeros_behind_the_last(library):
    weight = torch.arange(1, 33 * 6 + 1, dtype=torch.float32).view(33, 6).bfloat16()
    packed = library.pack(weight)
    assert packed.shape == (2, 3, 32, 2)
    assert torch.equal(packed.transpose(1, 2).reshape(64, 6)[:33], weight)
    assert packed[1, :, 1:].count_nonzero() == 0


def test_the_exponential_is_exact_to_float32_s_own_rounding(library):
    x = -torch.cat([torch.linspace(0, 87, 16 * 5000), torch.logspace(-8, 1, 16 * 500)])
    error = (library.exp_negative(x).double() / x.double().exp() - 1).abs()
    assert float(error.max()) < 3e-7


def test_the_exponential_of_very_little_is_zero(library):
    x = torch.tensor([-88.0, -1e4, -1e30, float("-inf")] * 4)
    assert library.exp_negative(x).count_nonzero() == 0


def test_a_library_is_compiled_once(library, tmp_path):
    path = build_library(tmp_path)
    stamp = path.stat().st_mtime_ns
    assert build_library(tmp_path) == path
    assert path.stat().st_mtime_ns == stamp
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing is left behind"


def test_without_a_compiler_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotBuild, match=r"no C\+\+ compiler found"):
        build_library(tmp_path)


@pytest.mark.parametrize("n_columns", [1, 15, 16, 17, 1000])
def test_argmax_is_torch_s(n_columns, library):
    generator = torch.Generator().manual_seed(n_columns)
    numbers = torch.randint(-3, 3, (40, n_columns), generator=generator).float()  # with many equal ones
    numbers[1] = float("-inf")
    numbers[2, n_columns // 2] = float("inf")
    numbers[3, n_columns // 2 :] = float("nan")
    numbers[4] = float("nan")
    assert [library.argmax(row) for row in numbers] == numbers.argmax(dim=-1).tolist()


def test_a_team_s_threads_end_with_it(library):
    before = n_threads()
    team = library.make_team(4)
    assert n_threads() == before + 3
    library.end_team(team)
    assert n_threads() == before


def n_threads():
    return len(list(Path("/proc/self/task").iterdir()))
