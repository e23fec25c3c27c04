"""One task from examples to the bytes of a coefficient file, with its scores on unseen items in the provenance."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from onebasis import __version__
from onebasis.coefficients.format import write_coefficients
from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import Scorer, exact_match, score
from onebasis.fitting.training.answers import AnswerLoss, check_window
from onebasis.fitting.training.loop import Learner, StepLoss, optimise
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.sites import trainable_sites
from onebasis.model.factors import Basis, checked_fingerprint
from onebasis.model.loader import LoadedBase


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a fit came to. Scores are exact match of greedy answers on the validation items; None without any."""

    size_bytes: int
    first_loss: float
    final_loss: float
    train_s: float
    base_score: float | None
    task_score: float | None


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
    """Train on `train`, score the bare model and the task on `validation`, write the file.

    What is scored is what is stored: the float16 numbers of the file.

    Args:
        metric: what the provenance calls the measure that `is_correct` takes.

    Raises:
        InvalidBasis: the basis was made for other base weights.
        InvalidData: an example is longer than the model's attention window.
        SetupError: the training diverged.
        OSError: `output` can't be written.
    """
    checked_fingerprint(base.model, basis)
    check_window(base, train)
    output.parent.mkdir(parents=True, exist_ok=True)
    base_score = score(base, validation, is_correct=is_correct) if validation else None
    with trainable_sites(base, basis, recipe.form) as trained:
        numbers = trained.tasks[0]
        learner = Learner(task, numbers, train, recipe)
        train_s = optimise([learner], AnswerLoss(base, trained), on_step)
        values = numbers.stored()
        numbers.load(values)
        with trained.use(0):
            task_score = score(base, validation, is_correct=is_correct) if validation else None
    provenance = {
        "tool": f"onebasis {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "data": {"train_sha256": _digest(train), "n_train": len(train), "n_validation": len(validation)},
        "recipe": recipe.as_provenance() | {"compute_dtype": str(base.model.dtype).removeprefix("torch.")},
        "loss": {"first": round(learner.first_loss, 4), "mean_of_last_10": round(learner.final_loss, 4)},
        "train_s": round(train_s, 1),
        "n_threads": torch.get_num_threads(),
        "scores": {"metric": metric, "n": len(validation), "base": base_score, "task": task_score},
    }
    data = write_coefficients(
        values,
        form=recipe.form,
        basis=basis.spec.digest,
        base_fingerprint=basis.spec.base_fingerprint,
        task=task,
        provenance=provenance,
    )
    output.write_bytes(data)
    return FitReport(
        size_bytes=len(data),
        first_loss=learner.first_loss,
        final_loss=learner.final_loss,
        train_s=train_s,
        base_score=base_score,
        task_score=task_score,
    )


def _digest(examples: Sequence[TokenExample]) -> str:
    state = hashlib.sha256()
    for example in examples:
        state.update(repr((example.prompt_ids, example.answer_ids)).encode())
    return state.hexdigest()
