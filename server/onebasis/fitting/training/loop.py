"""The optimisation loop: any number of tasks side by side, each with its own optimiser, schedule and end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from onebasis.fitting.training.learner import Learner

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class StepLoss:
    """News of one training step: its number from 1, the mean loss of its batch, whose it is if there are several."""

    step: int
    loss: float
    task: str = ""


@dataclass(frozen=True, slots=True)
class TaskBatch(Generic[Item]):
    """The examples of one task in a step; `place` is the task's among the learners."""

    place: int
    examples: list[Item]


LossFunction = Callable[[Sequence[TaskBatch[Item]]], Sequence[Tensor]]
"""The mean loss of each batch, a scalar that depends on the numbers of the batch's own task alone."""


def optimise(
    learners: Sequence[Learner[Item]],
    loss_of: LossFunction[Item],
    on_step: Callable[[StepLoss], None],
    after_round: Callable[[int], None] = lambda _n_rounds: None,
) -> float:
    """Train every learner from where it is to its end; returns the seconds that took.

    Each round takes one batch of every task that is not done and runs them forward and backward together.

    Args:
        after_round: called with the number of rounds that the longest learner has behind it.

    Raises:
        SetupError: the training of a task diverged.
    """
    started_s = time.monotonic()
    while running := [place for place, learner in enumerate(learners) if not learner.is_done]:
        losses = loss_of([TaskBatch(place, learners[place].next_batch()) for place in running])
        torch.stack(list(losses)).sum().backward()  # type: ignore[no-untyped-call]
        for place, loss in zip(running, losses, strict=True):
            learner = learners[place]
            learner.update(float(loss.detach()))
            on_step(StepLoss(len(learner.losses), learner.losses[-1], learner.task))
        after_round(max(len(learner.losses) for learner in learners))
    return time.monotonic() - started_s
