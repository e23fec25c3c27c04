"""One task as it learns."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from onebasis.core.errors import SetupError
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.task_numbers import TaskNumbers

Item = TypeVar("Item")


class Evaluation(NamedTuple):
    """The loss on the validation examples after `step` steps."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class LearnerState:
    """All that a learner needs to go on as if it had never stopped, besides its task's data and recipe.

    tensors: flat [n] float32 each: `numbers`, Adam's `exp_avg` and `exp_avg_sq`, and `best`.
    """

    losses: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    tensors: Mapping[str, Tensor]


class Learner(Generic[Item]):
    """One task as it learns. Owns its optimiser, its order of examples, its losses, evaluations and best step.

    Nothing of it depends on the other learners of a run, so a task learns the same in company and alone. Every
    example comes once before any comes again; the order, and so all else, is given by the recipe's seed.

    Args:
        numbers: what is trained; starts from what it holds.
        validate: the loss on validation examples under the numbers as they are; for recipes that evaluate.

    Raises:
        SetupError: the recipe evaluates, and there is nothing to evaluate on.
    """

    def __init__(
        self,
        task: str,
        numbers: TaskNumbers,
        examples: Sequence[Item],
        recipe: FitRecipe,
        validate: Callable[[], float] | None = None,
    ) -> None:
        if recipe.evaluate_every is not None and validate is None:
            raise SetupError(f"{task}: no validation examples to evaluate on; give some, or train without evaluations")
        self.task = task
        self.numbers = numbers
        self.recipe = recipe
        self.losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self._validate = validate
        self._best = numbers.flat.detach().clone()
        self._batches = _batches(examples, recipe)
        self._optimizer = torch.optim.AdamW([numbers.flat], lr=recipe.learning_rate, weight_decay=0.0)

    @property
    def is_done(self) -> bool:
        return len(self.losses) == self.recipe.n_steps or self._is_out_of_patience()

    @property
    def best(self) -> Evaluation | None:
        """The first of the lowest losses; None without evaluations."""
        return min(self.evaluations, key=lambda evaluation: evaluation.loss, default=None)

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
        """One optimiser step from the gradient that backward left in `numbers`; an evaluation where one is due.

        Raises:
            SetupError: the loss is not finite, on the batch or on the validation examples.
        """
        step = len(self.losses) + 1
        if not math.isfinite(loss):
            raise SetupError(f"{self.task}: the loss of step {step} is {loss}; lower the learning rate")
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.recipe.rate_factor(step - 1)
        torch.nn.utils.clip_grad_norm_(self.numbers.flat, self.recipe.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)  # the gradients of the parts share its memory
        self.losses.append(loss)
        every = self.recipe.evaluate_every
        if self._validate is not None and every is not None and (step % every == 0 or step == self.recipe.n_steps):
            self._evaluate(self._validate)

    def keep_best(self) -> int:
        """Put the numbers of the best step in place, of the last one without evaluations; returns that step."""
        if self.best is None:
            return len(self.losses)
        with torch.no_grad():
            self.numbers.flat.copy_(self._best)
        return self.best.step

    def state(self) -> LearnerState:
        """A view, to be written down before the next step."""
        moments = self._optimizer.state[self.numbers.flat]
        tensors = {"numbers": self.numbers.flat.detach(), "best": self._best}
        tensors |= {name: moments[name] for name in ("exp_avg", "exp_avg_sq")}
        return LearnerState(tuple(self.losses), tuple(self.evaluations), tensors)

    def restore(self, state: LearnerState) -> None:
        """Go on from a state of a learner of the same task, data and recipe. Only before the first step."""
        with torch.no_grad():
            self.numbers.flat.copy_(state.tensors["numbers"])
        self._best = state.tensors["best"].clone()
        self._optimizer.state[self.numbers.flat] = {
            "step": torch.tensor(float(len(state.losses))),
            "exp_avg": state.tensors["exp_avg"].clone(),
            "exp_avg_sq": state.tensors["exp_avg_sq"].clone(),
        }
        self.losses = list(state.losses)
        self.evaluations = list(state.evaluations)
        for _ in self.losses:
            next(self._batches)

    def _evaluate(self, validate: Callable[[], float]) -> None:
        step, loss = len(self.losses), validate()
        if not math.isfinite(loss):
            raise SetupError(f"{self.task}: the validation loss after step {step} is {loss}; lower the learning rate")
        self.evaluations.append(Evaluation(step, loss))
        if self.best is self.evaluations[-1]:
            self._best.copy_(self.numbers.flat.detach())

    def _is_out_of_patience(self) -> bool:
        if self.recipe.patience is None or self.best is None:
            return False
        return len(self.evaluations) - 1 - self.evaluations.index(self.best) >= self.recipe.patience


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
