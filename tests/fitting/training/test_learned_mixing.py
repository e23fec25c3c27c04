"""Mixing cores that tasks learn together: they end in a basis file, the vectors in files for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.container import read_container
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.errors import InvalidBasis, SetupError
from onebasis.fitting.mixing import write_mixing
from onebasis.fitting.training.job import fit_tasks
from onebasis.fitting.training.learned_mixing import fit_with_mixing, initial_mixing
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import SHARED, FitReport, Progress, TaskData
from onebasis.fitting.training.sites import trainable_sites
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase
from tests.fitting.tiny import CPU
from tests.fitting.training.test_job import Interrupted, ignore, logits, task_data, values

RECIPE = FitRecipe(form="vector", n_steps=12, batch_size=3, learning_rate=0.05, warmup_steps=2)
N_MIX = 2


def basis_file(folder: Path) -> Path:
    return folder / "tiny.basis.safetensors"


def learn(
    base: LoadedBase,
    basis: Basis,
    path: Path,
    data: list[TaskData],
    output: Path,
    progress: Progress | None = None,
    recipe: FitRecipe = RECIPE,
) -> tuple[BasisSpec, list[FitReport]]:
    return fit_with_mixing(base, basis, path, data, recipe, N_MIX, output, progress or Progress(ignore))


def mixed(basis: Basis, folder: Path, seed: int) -> Basis:
    """The basis with the mixing cores that learning with this seed starts from, in the file `mixed`."""
    start = initial_mixing(basis.spec, N_MIX, seed)
    cores = {name: part.detach().numpy().copy() for name, part in zip(basis.factors, start, strict=True)}
    write_mixing(basis_file(folder), cores, {}, folder / "mixed")
    return load_basis(folder / "mixed", dtype=torch.float32, device=CPU)


def test_what_was_trained_is_what_the_files_say(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    data = task_data(tmp_path / "out", "abc")
    spec, reports = learn(base, basis, basis_file(tmp_path), data, tmp_path / "new" / "learned")
    learned = load_basis(tmp_path / "new" / "learned", dtype=torch.float32, device=CPU)
    assert learned.spec == spec
    for place, (task, report) in enumerate(zip(data, reports, strict=True)):
        assert report.training.task == task.task == "abc"[place]
        assert report.training.final_loss < 0.9 * report.training.first_loss
        bound = bind(parse_coefficients(task.output.read_bytes()), spec)
        assert (bound.file.form, len(bound.file.values)) == ("vector", N_MIX * len(spec.sites))
        with trainable_sites(base, learned, "vector") as trained, trained.use(0):
            trained.tasks[0].load(bound.file.numbers())
            by_vector = logits(base)
        with trainable_sites(base, learned, "core") as trained, trained.use(0):
            trained.tasks[0].load(bound.flat_cores())
            torch.testing.assert_close(logits(base), by_vector, rtol=1e-4, atol=1e-4)


def test_the_new_basis_has_the_factors_and_says_what_it_learnt_on(
    base: LoadedBase, basis: Basis, tmp_path: Path
) -> None:
    data = task_data(tmp_path, "abc")
    spec, _ = learn(base, basis, basis_file(tmp_path), data, tmp_path / "learned")
    before, after = (read_container(path.read_bytes()) for path in (basis_file(tmp_path), tmp_path / "learned"))
    assert {name: tensor for name, tensor in after.tensors.items() if not name.endswith(".G")} == before.tensors
    report = spec.report["mixing"]
    assert (report["n_mix"], report["from_basis"]) == (N_MIX, basis.spec.digest)
    file = parse_coefficients(data[1].output.read_bytes())
    assert report["learned_on"][1] == {"task": "b", "train_sha256": file.provenance["data"]["train_sha256"]}
    assert report["recipe"]["n_steps"] == 12


def test_cores_that_learn_fit_better_than_those_they_started_from(
    base: LoadedBase, basis: Basis, tmp_path: Path
) -> None:
    data = task_data(tmp_path, "abc")
    frozen = fit_tasks(base, mixed(basis, tmp_path, RECIPE.seed), data, RECIPE, Progress(ignore))
    _, learned = learn(base, basis, basis_file(tmp_path), data, tmp_path / "learned")
    for one, other in zip(frozen, learned, strict=True):
        assert one.training.first_loss == pytest.approx(other.training.first_loss), "both start at the bare model"
        assert other.training.final_loss < 0.9 * one.training.final_loss


def test_learning_goes_on_from_the_cores_that_a_basis_has(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    start, data = mixed(basis, tmp_path, seed=7), task_data(tmp_path, "abc")
    barely = replace(RECIPE, n_steps=1, learning_rate=1e-4)
    spec, _ = learn(base, start, tmp_path / "mixed", data, tmp_path / "new", recipe=barely)
    for name, before in start.spec.mixing.items():
        np.testing.assert_allclose(spec.mixing[name], before, atol=2e-4)
        assert not np.array_equal(spec.mixing[name], before)
    with pytest.raises(SetupError, match="1 mixing cores: the basis has 2 already, and learning goes on from those"):
        initial_mixing(spec, 1, 0)


def test_every_task_moves_the_shared_cores(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    """After one step they differ when one of the tasks has other data."""
    recipe = replace(RECIPE, n_steps=2)
    first = task_data(tmp_path, "abc")
    changed = [first[0], replace(first[1], train=first[2].train), first[2]]
    one, _ = learn(base, basis, basis_file(tmp_path), first, tmp_path / "1", recipe=recipe)
    two, _ = learn(base, basis, basis_file(tmp_path), changed, tmp_path / "2", recipe=recipe)
    for name, cores in one.mixing.items():
        assert not np.allclose(cores, two.mixing[name], atol=1e-4)


def test_the_news_have_the_shared_cores_with_the_mean_loss(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    news: list[StepLoss] = []
    recipe = replace(RECIPE, n_steps=1)
    learn(base, basis, basis_file(tmp_path), task_data(tmp_path, "abc"), tmp_path / "n", Progress(news.append), recipe)
    assert [step.task for step in news] == ["a", "b", "c", SHARED]
    assert news[3].loss == pytest.approx(np.mean([step.loss for step in news[:3]]), rel=1e-5)


def test_a_resumed_run_learns_what_an_uninterrupted_one_does(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    whole, cut = task_data(tmp_path / "whole", "abc"), task_data(tmp_path / "cut", "abc")
    first, _ = learn(base, basis, basis_file(tmp_path), whole, tmp_path / "1")
    checkpoint = tmp_path / "run.checkpoint"

    def interrupt(step: StepLoss) -> None:
        if step.step == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        learn(base, basis, basis_file(tmp_path), cut, tmp_path / "2", Progress(interrupt, checkpoint, save_every=5))
    with pytest.raises(SetupError, match="of a run with other data, options, basis or base"):
        fit_with_mixing(
            base, basis, basis_file(tmp_path), cut, RECIPE, 1, tmp_path / "2", Progress(ignore, checkpoint, resume=True)
        )
    assert not (tmp_path / "2").exists()
    second, _ = learn(base, basis, basis_file(tmp_path), cut, tmp_path / "2", Progress(ignore, checkpoint, resume=True))
    assert second.digest == first.digest
    for one, other in zip(whole, cut, strict=True):
        assert np.array_equal(values(one), values(other))


@pytest.mark.parametrize(
    ("changed", "n_mix", "complaint"),
    [
        ({"form": "core"}, 1, "form 'core' has no mixing cores to learn; --learn-mixing goes with --form vector"),
        ({"evaluate_every": 4}, 1, "--evaluate-every keeps each task's best step, and the mixing cores of that step"),
        ({}, 3, "3 mixing cores from 3 tasks: allowed are 1 to 2"),
        ({}, 0, "0 mixing cores from 3 tasks: allowed are 1 to 2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_trains(
    changed: dict, n_mix: int, complaint: str, base: LoadedBase, basis: Basis, tmp_path: Path
) -> None:
    def train(_: object) -> None:
        raise AssertionError("it trained")

    with pytest.raises((SetupError, InvalidBasis), match=complaint):
        fit_with_mixing(
            base,
            basis,
            basis_file(tmp_path),
            task_data(tmp_path, "abc"),
            replace(RECIPE, **changed),
            n_mix,
            tmp_path / "new",
            Progress(train),
        )
    assert not (tmp_path / "new").exists()
