"""Tasks from examples to the bytes of coefficient files, with their scores on unseen items in the provenance."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from onebasis import __version__
from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import write_coefficients
from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import Scorer, exact_match, score
from onebasis.fitting.files import check_folder, write_whole
from onebasis.fitting.training.answers import check_window
from onebasis.fitting.training.learner import Evaluation
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport, Progress, TaskData, TrainedTask, data_digest, train_tasks
from onebasis.fitting.training.sites import TrainedTasks, trainable_sites
from onebasis.model.factors import Basis, checked_fingerprint
from onebasis.model.loader import LoadedBase

_MOST_NOTED: Final = 256
"""Of evaluations, or of the other tasks of a run, that a file tells of."""


def fit_task(
    base: LoadedBase,
    basis: Basis,
    train: Sequence[TokenExample],
    validation: Sequence[TokenExample],
    *,
    task: str,
    recipe: FitRecipe,
    output: Path,
    on_step: Callable[[StepLoss], None],
    is_correct: Scorer = exact_match,
    metric: str = "exact_match",
) -> FitReport:
    """`fit_tasks` of one task."""
    data = [TaskData(task, train, validation, output)]
    return fit_tasks(base, basis, data, recipe, Progress(on_step), is_correct=is_correct, metric=metric)[0]


def fit_tasks(
    base: LoadedBase,
    basis: Basis,
    tasks: Sequence[TaskData],
    recipe: FitRecipe,
    progress: Progress,
    *,
    is_correct: Scorer = exact_match,
    metric: str = "exact_match",
) -> list[FitReport]:
    """Train each task on its examples, score the bare model and the task on its validation items, write its file.

    The tasks share each forward and backward pass, and nothing else: each learns as it would alone. What is scored
    is what is stored: the float16 numbers of the file.

    Args:
        metric: what the provenance calls the measure that `is_correct` takes.

    Raises:
        InvalidBasis: the basis was made for other base weights.
        InvalidData: an example is longer than the model's attention window.
        SetupError: the training diverged; evaluations without validation items; a checkpoint of another run.
        OSError: a file can't be written.
    """
    check_tasks(base, basis, tasks)
    with trainable_sites(base, basis, recipe.form, len(tasks)) as trained:
        results = train_tasks(base, trained, tasks, recipe, progress, basis.spec.digest)
        return store_tasks(base, trained, basis.spec, tasks, recipe, results, is_correct=is_correct, metric=metric)


def check_tasks(base: LoadedBase, basis: Basis, tasks: Sequence[TaskData]) -> None:
    """Refuse what can't be trained, or could not be written afterwards.

    Raises:
        InvalidBasis: the basis was made for other base weights.
        InvalidData: an example is longer than the model's attention window.
        SetupError: a folder can't be written to.
    """
    checked_fingerprint(base.model, basis)
    for data in tasks:
        check_window(base, data.task, [*data.train, *data.validation])
        check_folder(data.output.parent)


def store_tasks(
    base: LoadedBase,
    trained: TrainedTasks,
    basis: BasisSpec,
    tasks: Sequence[TaskData],
    recipe: FitRecipe,
    results: Sequence[TrainedTask],
    *,
    is_correct: Scorer = exact_match,
    metric: str = "exact_match",
) -> list[FitReport]:
    """Score and write each task as it is in `trained`, in float16, for `basis`. Raises OSError."""
    reports: list[FitReport] = []
    for place, (data, result) in enumerate(zip(tasks, results, strict=True)):
        values = trained.tasks[place].stored()
        trained.tasks[place].load(values)
        base_score = score(base, data.validation, is_correct=is_correct) if data.validation else None
        with trained.use(place):
            task_score = score(base, data.validation, is_correct=is_correct) if data.validation else None
        scores = {"metric": metric, "n": len(data.validation), "base": base_score, "task": task_score}
        content = write_coefficients(
            values,
            form=recipe.form,
            basis=basis.digest,
            base_fingerprint=basis.base_fingerprint,
            task=data.task,
            provenance=_provenance(base, tasks, place, recipe, result) | {"scores": scores},
        )
        write_whole(data.output, content)
        reports.append(FitReport(result, len(content), len(data.validation), base_score, task_score))
    return reports


def _provenance(
    base: LoadedBase, tasks: Sequence[TaskData], place: int, recipe: FitRecipe, result: TrainedTask
) -> dict[str, Any]:
    data = tasks[place]
    return {
        "tool": f"onebasis {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "data": {
            "train_sha256": data_digest(data.train),
            "n_train": len(data.train),
            "n_validation": len(data.validation),
        },
        "recipe": recipe.as_provenance() | {"compute_dtype": str(base.model.dtype).removeprefix("torch.")},
        "loss": {"first": round(result.first_loss, 4), "mean_of_last_10": round(result.final_loss, 4)},
        "steps": {"taken": result.n_steps, "kept": result.kept_step},
        "n_evaluations": len(result.evaluations),
        "validation_loss": [[evaluation.step, round(evaluation.loss, 4)] for evaluation in _noted(result)],
        "train_s": round(result.train_s, 1),
        "trained_with": [other.task for other in tasks if other is not data][:_MOST_NOTED],
        "n_trained_with": len(tasks) - 1,
        "n_threads": torch.get_num_threads(),
    }


def _noted(result: TrainedTask) -> list[Evaluation]:
    """Its evaluations; of very many some, evenly spread, with the kept one and the last: a provenance has its limit."""
    every = -(-len(result.evaluations) // _MOST_NOTED)
    ends = {result.kept_step, result.n_steps}
    return [one for i, one in enumerate(result.evaluations) if i % every == 0 or one.step in ends]
