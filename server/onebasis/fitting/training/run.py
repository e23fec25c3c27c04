"""One training run of several tasks, whatever their sites are: what goes in, what comes out, how it is resumed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from onebasis.core.errors import SetupError
from onebasis.fitting.data import TokenExample
from onebasis.fitting.training.answers import AnswerLoss
from onebasis.fitting.training.checkpoint import Checkpoint
from onebasis.fitting.training.learner import Evaluation, Learner
from onebasis.fitting.training.loop import LossFunction, StepLoss, TaskBatch, optimise
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.sites import TrainedTasks
from onebasis.fitting.training.task_numbers import TaskNumbers
from onebasis.model.loader import LoadedBase

SHARED: Final = "mixing cores"
"""Whose news the steps of numbers are that tasks share. No task can have this name."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """One task to train: its name, its examples, where its file goes."""

    task: str
    train: Sequence[TokenExample]
    validation: Sequence[TokenExample]
    output: Path


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run tells its news, and where it writes down how far it is.

    checkpoint: a file to save to every `save_every` steps and at the end of the training; None for none.
    resume: go on from that file.
    """

    on_step: Callable[[StepLoss], None]
    checkpoint: Path | None = None
    save_every: int = 25
    resume: bool = False


@dataclass(frozen=True, slots=True)
class TrainedTask:
    """How the training of one task went.

    first_loss, final_loss: of the first step and the mean of the last ten, in nats per answer token.
    n_steps: steps taken; fewer than the recipe's if patience ended it.
    kept_step: the step whose numbers are the result.
    train_s: of this run, which other tasks may have shared, from where it was resumed.
    """

    task: str
    first_loss: float
    final_loss: float
    n_steps: int
    kept_step: int
    evaluations: tuple[Evaluation, ...]
    train_s: float


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a task came to. Scores are the share of right greedy answers on the validation items; None without any."""

    training: TrainedTask
    size_bytes: int
    n_validation: int
    base_score: float | None
    task_score: float | None


def train_tasks(
    base: LoadedBase,
    trained: TrainedTasks,
    tasks: Sequence[TaskData],
    recipe: FitRecipe,
    progress: Progress,
    start: str,
    *,
    shared: TaskNumbers | None = None,
) -> list[TrainedTask]:
    """Train all tasks side by side; leaves the numbers to keep in `trained`.

    Args:
        start: identity of what the sites start from, such as a basis; a checkpoint of another start is refused.
        shared: numbers on which every task's loss depends, learnt beside the tasks' own on the same schedule. For
            recipes without evaluations: a task's best step would be one whose shared numbers the others changed.

    Raises:
        SetupError: the training diverged; evaluations without validation examples; a checkpoint of another run.
        OSError: the checkpoint can't be written.
    """
    loss = AnswerLoss(base, trained)
    learners = [
        Learner(
            data.task,
            trained.tasks[place],
            data.train,
            recipe,
            validate=partial(loss.of_all, place, data.validation) if data.validation else None,
        )
        for place, data in enumerate(tasks)
    ]
    loss_of: LossFunction[TokenExample] = loss
    if shared is not None:
        learners.append(Learner(SHARED, shared, (), recipe))
        loss_of = partial(_with_mean, loss)
    if progress.checkpoint is None:
        train_s = optimise(learners, loss_of, progress.on_step)
    else:
        checkpoint = Checkpoint(progress.checkpoint, _identity(tasks, recipe, start))
        if progress.resume:
            checkpoint.restore(learners)

        def after_round(n_rounds: int) -> None:
            if n_rounds % progress.save_every == 0:
                checkpoint.save(learners)

        train_s = optimise(learners, loss_of, progress.on_step, after_round)
        checkpoint.save(learners)
    return [
        TrainedTask(
            task=learner.task,
            first_loss=learner.first_loss,
            final_loss=learner.final_loss,
            n_steps=len(learner.losses),
            kept_step=_kept_step(learner),
            evaluations=tuple(learner.evaluations),
            train_s=train_s,
        )
        for learner in learners
    ][: len(tasks)]


def _kept_step(learner: Learner[Any]) -> int:
    """Puts the numbers of that step in place; nothing else tells of a last step that diverged."""
    kept = learner.keep_best()
    if not np.isfinite(learner.numbers.stored()).all():
        raise SetupError(f"{learner.task}: its numbers are beyond float16 after step {kept}; lower the learning rate")
    return kept


def _with_mean(loss: AnswerLoss, batches: Sequence[TaskBatch[TokenExample]]) -> list[Tensor]:
    """The tasks' losses and, last, their mean: news alone, as shared numbers have their gradient from the others."""
    *of_tasks, _ = batches
    losses = loss(of_tasks)
    return [*losses, torch.stack(losses).detach().mean()]


def data_digest(examples: Sequence[TokenExample]) -> str:
    """sha256 of the tokens, in hex."""
    state = hashlib.sha256()
    for example in examples:
        state.update(repr((example.prompt_ids, example.answer_ids)).encode())
    return state.hexdigest()


def _identity(tasks: Sequence[TaskData], recipe: FitRecipe, start: str) -> str:
    """Of everything that the numbers after each step depend on."""
    data = [(task.task, data_digest(task.train), data_digest(task.validation)) for task in tasks]
    return hashlib.sha256(json.dumps([data, recipe.as_provenance(), start]).encode()).hexdigest()
