"""Several tasks in one run, runs that are interrupted, the form vector, and LoRA beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import SetupError
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.mixing import mix_basis
from onebasis.fitting.training import job
from onebasis.fitting.training.job import fit_tasks
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.lora_baseline import LoraShape, LoraSite, fit_loras, lora_sites
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport, Progress, TaskData
from onebasis.fitting.training.sites import trainable_sites
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites
from tests.api.tiny_model import EOS_ID
from tests.fitting.tiny import CPU, token_example

PROMPT = torch.tensor([[7, 30, 8, 50, 9]])
RECIPE = FitRecipe(n_steps=12, batch_size=3, learning_rate=0.05, warmup_steps=2, evaluate_every=4)


Save = Callable[[str, Mapping[str, LowRankUpdate]], None]


def ignore(_: object) -> None: ...


def examples(start: int, n: int) -> list:
    prompts = [[7, 8, start + i] if i % 2 else [7, 8, start + i, 9, 10] for i in range(n)]
    return [token_example(prompt, [60 + 3 * i + start, EOS_ID], "x") for i, prompt in enumerate(prompts)]


def task_data(folder: Path, names: str) -> list[TaskData]:
    return [
        TaskData(name, examples(20 + 9 * place, 6), examples(24 + 9 * place, 2), folder / f"{name}.coef.safetensors")
        for place, name in enumerate(names)
    ]


def values(data: TaskData) -> np.ndarray:
    return parse_coefficients(data.output.read_bytes()).numbers()


@torch.no_grad()
def logits(base: LoadedBase) -> Tensor:
    return base.model(input_ids=PROMPT).logits[0]


# ---------------------------------------------------------------- several tasks


def test_a_task_learns_in_company_what_it_learns_alone(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    together = task_data(tmp_path / "together", "abc")
    reports = fit_tasks(base, basis, together, RECIPE, Progress(ignore))
    for place, alone in enumerate(task_data(tmp_path / "alone", "abc")):
        (report,) = fit_tasks(base, basis, [alone], RECIPE, Progress(ignore))
        np.testing.assert_allclose(values(together[place]), values(alone), rtol=0, atol=2e-3)
        assert reports[place].training.final_loss == pytest.approx(report.training.final_loss, rel=1e-3)
        assert np.abs(values(alone)).max() > 0.1, "nothing was learnt that could differ"
    assert not np.allclose(values(together[0]), values(together[1]), atol=2e-3), "the tasks do not tell companies apart"


def test_the_news_name_the_task(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    news: list[StepLoss] = []
    fit_tasks(base, basis, task_data(tmp_path, "ab"), replace(RECIPE, n_steps=2), Progress(news.append))
    assert [(step.task, step.step) for step in news] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_the_file_tells_of_steps_and_evaluations(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    data = task_data(tmp_path, "ab")
    report = fit_tasks(base, basis, data, RECIPE, Progress(ignore))[0].training
    provenance = parse_coefficients(data[0].output.read_bytes()).provenance
    assert provenance["steps"] == {"taken": 12, "kept": report.kept_step}
    assert [step for step, _ in provenance["validation_loss"]] == [4, 8, 12]
    assert min(report.evaluations, key=lambda e: e.loss).step == report.kept_step
    assert provenance["trained_with"] == ["b"]


@pytest.mark.parametrize("form", ["core", "vector"])
def test_a_last_step_that_diverges_writes_nothing(
    form: str, base: LoadedBase, basis: Basis, mixed: Basis, tmp_path: Path
) -> None:
    """The loss of a step is taken before it; no other step comes after the last one."""
    data = task_data(tmp_path / "out", "ab")
    recipe = replace(RECIPE, form=form, n_steps=1, learning_rate=1e6, warmup_steps=0, evaluate_every=None)
    with pytest.raises(SetupError, match="a: its numbers are beyond float16 after step 1; lower the learning rate"):
        fit_tasks(base, mixed if form == "vector" else basis, data, recipe, Progress(ignore))
    assert not (tmp_path / "out").exists()


def test_a_file_tells_of_some_of_very_many_evaluations(
    base: LoadedBase, basis: Basis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them could make its provenance larger than a reader takes, when the training is over."""
    monkeypatch.setattr(job, "_MOST_NOTED", 3)
    data = task_data(tmp_path, "abcdef")
    recipe = replace(RECIPE, evaluate_every=1)
    report = fit_tasks(base, basis, data, recipe, Progress(ignore))[0].training
    provenance = parse_coefficients(data[0].output.read_bytes()).provenance
    assert provenance["n_evaluations"] == len(report.evaluations) == 12
    steps = [step for step, _ in provenance["validation_loss"]]
    assert steps == sorted({1, 5, 9, report.kept_step, 12})
    assert (provenance["trained_with"], provenance["n_trained_with"]) == (["b", "c", "d"], 5)


# ---------------------------------------------------------------- interruption


class Interrupted(Exception): ...


@pytest.mark.parametrize("names", ["a", "ab"])
def test_a_resumed_run_writes_the_numbers_of_an_uninterrupted_one(
    names: str, base: LoadedBase, basis: Basis, tmp_path: Path
) -> None:
    whole, cut = task_data(tmp_path / "whole", names), task_data(tmp_path / "cut", names)
    fit_tasks(base, basis, whole, RECIPE, Progress(ignore))
    checkpoint = tmp_path / "run.checkpoint"

    def interrupt(step: StepLoss) -> None:
        if step.step == 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit_tasks(base, basis, cut, RECIPE, Progress(interrupt, checkpoint, save_every=5))
    assert not cut[0].output.exists()
    steps: list[StepLoss] = []
    fit_tasks(base, basis, cut, RECIPE, Progress(steps.append, checkpoint, save_every=5, resume=True))
    assert steps[0].step == 6, "it went on from the last saving"
    for first, second in zip(whole, cut, strict=True):
        assert np.array_equal(values(first), values(second))


@pytest.mark.parametrize("change", ["recipe", "data", "basis"])
def test_a_checkpoint_of_another_run_is_refused(change: str, base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    data, recipe, other = task_data(tmp_path, "a"), RECIPE, basis
    progress = Progress(ignore, tmp_path / "run.checkpoint")
    fit_tasks(base, basis, data, recipe, progress)
    if change == "recipe":
        recipe = replace(recipe, learning_rate=0.04)
    elif change == "data":
        data = [replace(data[0], train=data[0].train[1:])]
    else:
        other = replace(basis, spec=replace(basis.spec, digest="sha256:" + "0" * 64))
    with pytest.raises(SetupError, match="of a run with other data, options, basis or base"):
        fit_tasks(base, other, data, recipe, replace(progress, resume=True))


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint of any kind"])
def test_what_is_no_checkpoint_is_refused(content: bytes | None, base: LoadedBase, basis: Basis, tmp_path) -> None:
    path = tmp_path / "run.checkpoint"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SetupError, match="run without --resume"):
        fit_tasks(base, basis, task_data(tmp_path, "a"), RECIPE, Progress(ignore, path, resume=True))


# ---------------------------------------------------------------- form vector


@pytest.fixture
def tasks(basis: Basis) -> list[BoundCoefficients]:
    """Four tasks that are mixes of two directions, around a mean that is not zero."""
    rng = np.random.default_rng(0)
    mean, *directions = rng.normal(0, 0.3, (3, basis.spec.n_core_numbers))
    files = []
    for first, second in [(1.0, 0.5), (-1.0, 2.0), (0.5, -1.0), (2.0, 1.0)]:
        numbers = (mean + first * directions[0] + second * directions[1]).astype(np.float32)
        identity = {"basis": basis.spec.digest, "base_fingerprint": basis.spec.base_fingerprint}
        files.append(parse_coefficients(write_coefficients(numbers, form="core", **identity)))
    return [bind(file, basis.spec) for file in files]


@pytest.fixture
def mixed(basis: Basis, tasks: list[BoundCoefficients], tmp_path: Path) -> Basis:
    """The basis of `basis` with mixing cores from `tasks`."""
    path = tmp_path / "mixed.basis.safetensors"
    mix_basis(tmp_path / "tiny.basis.safetensors", tasks, 2, path)
    return load_basis(path, dtype=torch.float32, device=CPU)


def test_a_vector_of_zeros_is_the_mean_core(
    base: LoadedBase, mixed: Basis, basis: Basis, tasks: list[BoundCoefficients]
) -> None:
    mean = np.mean([task.flat_cores() for task in tasks], axis=0)
    with trainable_sites(base, basis, "core") as trained, trained.use(0):
        trained.tasks[0].load(mean)
        expected = logits(base)
    with trainable_sites(base, mixed, "vector") as trained, trained.use(0):
        torch.testing.assert_close(logits(base), expected, rtol=1e-4, atol=1e-4)


def test_a_vector_is_learnt_stored_and_lowered_to_what_was_trained(
    base: LoadedBase, mixed: Basis, tmp_path: Path
) -> None:
    data = task_data(tmp_path, "a")
    recipe = replace(RECIPE, form="vector", evaluate_every=None, learning_rate=0.2)
    (report,) = fit_tasks(base, mixed, data, recipe, Progress(ignore))
    assert report.training.final_loss < report.training.first_loss
    file = parse_coefficients(data[0].output.read_bytes())
    assert (file.form, len(file.values)) == ("vector", 2 * len(mixed.spec.sites))
    with trainable_sites(base, mixed, "vector") as trained, trained.use(0):
        trained.tasks[0].load(file.numbers())
        as_trained = logits(base)
    cores = bind(file, mixed.spec).flat_cores()
    with trainable_sites(base, mixed, "core") as trained, trained.use(0):
        trained.tasks[0].load(cores)
        torch.testing.assert_close(logits(base), as_trained, rtol=1e-4, atol=1e-4)


def test_a_basis_without_mixing_cores_has_no_vectors(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="has no mixing cores; make one with `onebasis basis mix`"):
        fit_tasks(base, basis, task_data(tmp_path, "a"), replace(RECIPE, form="vector"), Progress(ignore))


# ---------------------------------------------------------------- LoRA beside it


def loras(base: LoadedBase, data: Sequence[TaskData], save: Save) -> list[FitReport]:
    shape = LoraShape(rank=3, alpha=6.0)
    recipe = replace(RECIPE, learning_rate=0.02, n_steps=20)
    return fit_loras(base, data, recipe, shape, ignore, base_scores=[0.25] * len(data), save=save)


def test_a_lora_learns_and_is_what_its_updates_say(base: LoadedBase, tmp_path: Path) -> None:
    layers = linear_sites(base.model)
    saved: dict[str, LowRankUpdate] = {}
    as_trained: list[Tensor] = []

    def note(_task: str, updates: Mapping[str, LowRankUpdate]) -> None:
        saved.update(updates)
        site = next(module for module in base.model.modules() if isinstance(module, LoraSite))
        with site.trained.use(0):
            as_trained.append(logits(base))

    (report,) = loras(base, task_data(tmp_path, "a"), note)
    n_numbers = sum(3 * (layer.in_features + layer.out_features) for layer in layers.values())
    assert report.training.final_loss < 0.9 * report.training.first_loss
    assert (report.size_bytes, report.base_score) == (2 * n_numbers, 0.25)
    assert list(saved) == list(layers)
    for name, update in saved.items():
        layers[name].weight.data += update.b @ update.a
    torch.testing.assert_close(logits(base), as_trained[0], rtol=1e-4, atol=1e-4)


def test_a_lora_starts_at_the_bare_model_and_learns_in_company_as_alone(base: LoadedBase, tmp_path: Path) -> None:
    bare = logits(base)
    with lora_sites(base, LoraShape(), seed=0, n_tasks=1) as trained, trained.use(0):
        torch.testing.assert_close(logits(base), bare, rtol=0, atol=0)
    together: dict[str, Mapping[str, LowRankUpdate]] = {}
    alone: dict[str, Mapping[str, LowRankUpdate]] = {}
    data = task_data(tmp_path, "ab")
    loras(base, data, together.__setitem__)
    loras(base, data[1:], alone.__setitem__)
    for name, update in alone["b"].items():
        torch.testing.assert_close(together["b"][name].b, update.b, rtol=0, atol=2e-3)
        assert update.b.abs().max() > 0.01
