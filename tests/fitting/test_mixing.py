"""Mixing cores hold the tasks they are made from as well as any of their number can; the factors stay."""

from pathlib import Path

import numpy as np
import pytest

from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.coefficients.container import read_container
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import InvalidBasis
from onebasis.fitting.mixing import mix_basis, mixing_cores
from tests.coefficients.builders import coefficients, tiny_basis


def low_rank_cores(n_tasks: int, n_directions: int) -> np.ndarray:
    """[n_tasks, 3, 4], a mean that is not zero and so many directions around it."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(n_tasks, n_directions))
    return rng.normal(size=(1, 3, 4)) + np.einsum("tj,jab->tab", scores, rng.normal(size=(n_directions, 3, 4)))


def best_mix(cores: np.ndarray, mixing: np.ndarray) -> np.ndarray:
    """[n_tasks, k_out * k_in], each core as the nearest mix."""
    directions = mixing[1:].reshape(len(mixing) - 1, -1)
    left = (cores - mixing[0]).reshape(len(cores), -1)
    return mixing[0].ravel() + left @ np.linalg.pinv(directions) @ directions


def test_cores_of_few_directions_are_held_whole() -> None:
    cores = low_rank_cores(n_tasks=7, n_directions=2)
    made = mixing_cores(cores, n_mix=2)
    assert made.cores.shape == (3, 3, 4)
    np.testing.assert_allclose(made.cores[0], cores.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(best_mix(cores, made.cores), cores.reshape(7, -1), atol=1e-5)
    assert made.energy_held == pytest.approx(1.0)


def test_energy_held_is_that_of_the_best_mix() -> None:
    cores = low_rank_cores(n_tasks=9, n_directions=6)
    made = mixing_cores(cores, n_mix=2)
    lost = np.square(cores.reshape(9, -1) - best_mix(cores, made.cores)).sum()
    assert made.energy_held == pytest.approx(1 - lost / np.square(cores).sum(), rel=1e-4)
    assert made.energy_held < 0.95


def test_the_tasks_numbers_have_unit_spread() -> None:
    cores = low_rank_cores(n_tasks=9, n_directions=6)
    directions = mixing_cores(cores, n_mix=3).cores[1:].reshape(3, -1)
    numbers = (cores - cores.mean(axis=0)).reshape(9, -1) @ np.linalg.pinv(directions)
    np.testing.assert_allclose(numbers.std(axis=0), 1.0, rtol=1e-4)


@pytest.fixture
def tasks(tmp_path: Path) -> list[BoundCoefficients]:
    spec = tiny_basis(tmp_path)
    return [bind(parse_coefficients(coefficients(spec, seed=seed, task=f"t{seed}")), spec) for seed in range(4)]


def test_a_mixed_basis_has_the_factors_and_says_what_it_is_from(tasks: list[BoundCoefficients], tmp_path: Path) -> None:
    old, new = tmp_path / "tiny-0.basis.safetensors", tmp_path / "new" / "mixed.basis.safetensors"
    spec = mix_basis(old, tasks, 3, new)
    before, after = read_container(old.read_bytes()), read_container(new.read_bytes())
    assert {name: tensor for name, tensor in after.tensors.items() if not name.endswith(".G")} == before.tensors
    assert [site.n_mix for site in spec.sites] == [3, 3, 3]
    assert spec.base_fingerprint == tasks[0].basis.base_fingerprint
    report = spec.report["mixing"]
    assert report["from_basis"] == tasks[0].basis.digest != spec.digest
    assert [source["digest"] for source in report["from_tasks"]] == [task.digest for task in tasks]
    cores = np.stack([task.flat_cores()[: 2 * 3].reshape(2, 3) for task in tasks])
    mixing = spec.mixing[spec.sites[0].name]
    np.testing.assert_allclose(best_mix(cores, mixing), cores.reshape(4, -1), atol=1e-4)


def test_mixing_a_mixed_basis_again_replaces_its_mixing_cores(tasks: list[BoundCoefficients], tmp_path: Path) -> None:
    old, once, twice = (tmp_path / name for name in ("tiny-0.basis.safetensors", "once", "twice"))
    mix_basis(old, tasks, 3, once)
    spec = read_basis_spec(once)
    again = [bind(parse_coefficients(coefficients(spec, seed=seed)), spec) for seed in range(3)]
    assert [site.n_mix for site in mix_basis(once, again, 1, twice).sites] == [1, 1, 1]


@pytest.mark.parametrize("n_mix", [0, 4, 5])
def test_more_mixing_cores_than_the_tasks_can_tell_are_refused(
    n_mix: int, tasks: list[BoundCoefficients], tmp_path: Path
) -> None:
    with pytest.raises(InvalidBasis, match=f"{n_mix} mixing cores from 4 tasks: allowed are 1 to 3"):
        mix_basis(tmp_path / "tiny-0.basis.safetensors", tasks, n_mix, tmp_path / "new")
    assert not (tmp_path / "new").exists()
