"""The optimisation loop: any number of tasks side by side, each with its own optimiser, schedule and end."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from onebasis.core.errors import SetupError
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.task_numbers import TaskNumbers

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class StepLoss:
    """News of one training step of one task: its number from 1, mean loss per answer token in nats."""

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


class Learner(Generic[Item]):
    """One task as it learns. Owns its optimiser, its order of examples and its losses.

    Nothing of it depends on the other learners of a run, so a task learns the same in company and alone. Every
    example comes once before any comes again; the order and so all else is given by the recipe's seed.

    Args:
        numbers: what is trained; starts from what it holds.
    """

    def __init__(self, task: str, numbers: TaskNumbers, examples: Sequence[Item], recipe: FitRecipe) -> None:
        self.task = task
        self.numbers = numbers
        self.recipe = recipe
        self.losses: list[float] = []
        self._batches = _batches(examples, recipe)
        self._optimizer = torch.optim.AdamW([numbers.flat], lr=recipe.learning_rate, weight_decay=0.0)

    @property
    def is_done(self) -> bool:
        return len(self.losses) == self.recipe.n_steps

    @property
    def first_loss(self) -> float:
        return self.losses[0]

    @property
    def final_loss(self) -> float:
        """Mean of the last ten steps."""
        last = self.losses[-10:]
        return sum(last) / len(last)

    def next_batch(self) -> list[Item]:
        return next(self._batches)

    def update(self, loss: float) -> None:
        """One optimiser step from the gradient that backward left in `numbers`.

        Raises:
            SetupError: the loss is not finite.
        """
        step = len(self.losses) + 1
        if not math.isfinite(loss):
            raise SetupError(f"{self.task}: the loss of step {step} is {loss}; lower the learning rate")
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.recipe.rate_factor(step - 1)
        torch.nn.utils.clip_grad_norm_(self.numbers.flat, self.recipe.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)  # the parts' gradients share its memory
        self.losses.append(loss)


def optimise(
    learners: Sequence[Learner[Item]], loss_of: LossFunction[Item], on_step: Callable[[StepLoss], None]
) -> float:
    """Train every learner to its end; returns the seconds that took.

    Each step takes one batch of every task that is not done and runs them forward and backward together.

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
    return time.monotonic() - started_s


def _batches(examples: Sequence[Item], recipe: FitRecipe) -> Iterator[list[Item]]:
    """Endless batches; every example once before any comes again."""
    order = random.Random(recipe.seed)
    waiting: list[Item] = []
    size = min(recipe.batch_size, len(examples))
    while True:
        if len(waiting) < size:
            again = list(examples)
            order.shuffle(again)
            waiting += again
        yield waiting[:size]
        del waiting[:size]
