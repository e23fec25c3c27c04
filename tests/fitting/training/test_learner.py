"""A learner evaluates, keeps its best step, stops when it should, and goes on as if it had never stopped."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from onebasis.core.errors import SetupError
from onebasis.fitting.training.learner import Evaluation, Learner
from onebasis.fitting.training.loop import TaskBatch, optimise
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.task_numbers import TaskNumbers

RECIPE = FitRecipe(n_steps=12, batch_size=2, learning_rate=0.1, warmup_steps=2)
TARGETS = [-1.0, 0.5, 2.0, 3.5, 0.0]


def ignore(_: object) -> None: ...


def losses_of(tasks: list[TaskNumbers]) -> Callable[[list[TaskBatch[float]]], list[Tensor]]:
    """Squared distance of each number to the batch's targets; every example pulls another way."""

    def loss(batches: list[TaskBatch[float]]) -> list[Tensor]:
        return [
            torch.stack(
                [(part - target).square().sum() for part in tasks[batch.place].parts for target in batch.examples]
            )
            .mean()
            .sin()
            for batch in batches
        ]

    return loss


def scripted(losses: list[float]) -> Callable[[], float]:
    """A validation that says these losses, one after another."""
    script: Iterator[float] = iter(losses)
    return lambda: next(script)


def trained(recipe: FitRecipe, validate: Callable[[], float] | None = None) -> Learner[float]:
    numbers = TaskNumbers([(2, 3), (4,)])
    learner = Learner("t", numbers, TARGETS, recipe, validate)
    optimise([learner], losses_of([numbers]), ignore)
    return learner


# ---------------------------------------------------------------- the numbers


def test_parts_and_their_gradients_share_memory_with_the_whole() -> None:
    numbers = TaskNumbers([(2, 3), (4,)])
    (numbers.parts[0].sum() + 2 * numbers.parts[1].sum()).backward()
    assert numbers.flat.grad.tolist() == [1.0] * 6 + [2.0] * 4
    numbers.flat.data += 1
    assert numbers.parts[1].tolist() == [1.0] * 4
    (3 * numbers.parts[0].sum()).backward()
    assert numbers.flat.grad.tolist() == [4.0] * 6 + [2.0] * 4, "a second backward adds in place"


# ---------------------------------------------------------------- evaluation and stop


def test_evaluations_come_every_so_many_steps_and_at_the_end() -> None:
    learner = trained(replace(RECIPE, evaluate_every=5), scripted([3.0, 2.0, 1.0]))
    assert learner.evaluations == [(5, 3.0), (10, 2.0), (12, 1.0)]
    assert learner.keep_best() == 12


def test_the_best_step_is_kept_whatever_came_after() -> None:
    at_5 = trained(replace(RECIPE, n_steps=12, evaluate_every=5), scripted([1.0, 2.0, 1.0]))
    last = at_5.numbers.flat.detach().clone()
    assert at_5.keep_best() == 5, "the first of equals"
    stopped: list[Tensor] = []

    def note() -> float:
        stopped.append(again.numbers.flat.detach().clone())
        return 1.0 if len(stopped) == 1 else 2.0

    numbers = TaskNumbers([(2, 3), (4,)])
    again = Learner("t", numbers, TARGETS, replace(RECIPE, evaluate_every=5), note)
    optimise([again], losses_of([numbers]), ignore)
    assert torch.equal(at_5.numbers.flat, stopped[0])
    assert not torch.equal(at_5.numbers.flat, last)


def test_without_evaluations_the_last_step_is_kept() -> None:
    learner = trained(RECIPE)
    last = learner.numbers.flat.detach().clone()
    assert learner.keep_best() == 12
    assert torch.equal(learner.numbers.flat, last)


@pytest.mark.parametrize(
    ("patience", "losses", "n_steps"),
    [
        (1, [3.0, 2.0, 2.5], 6),
        (2, [3.0, 2.0, 2.5, 2.4], 8),
        (2, [3.0, 2.0, 2.5, 1.0, 1.5, 1.5], 12),
        (2, [3.0, 3.0, 3.0], 6),
        (None, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 12),
    ],
)
def test_patience_counts_evaluations_without_a_new_best(
    patience: int | None, losses: list[float], n_steps: int
) -> None:
    learner = trained(replace(RECIPE, evaluate_every=2, patience=patience), scripted(losses))
    assert len(learner.losses) == n_steps
    assert learner.best == min((Evaluation(2 * i + 2, loss) for i, loss in enumerate(losses)), key=lambda e: e.loss)


def test_evaluations_without_anything_to_evaluate_on_are_refused() -> None:
    with pytest.raises(SetupError, match="t: no validation examples to evaluate on"):
        Learner("t", TaskNumbers([(2,)]), TARGETS, replace(RECIPE, evaluate_every=2))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_no_number_ends_the_training(loss: float) -> None:
    """A first one that is NaN would stay the best for ever."""
    with pytest.raises(SetupError, match=f"t: the validation loss after step 2 is {loss}; lower the learning rate"):
        trained(replace(RECIPE, evaluate_every=2), scripted([loss, 1.0]))


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("stopped_at", [1, 4, 7])
def test_a_restored_learner_goes_on_bit_by_bit(stopped_at: int) -> None:
    recipe = replace(RECIPE, evaluate_every=3)
    script = [2.0, 1.0, 3.0, 2.5]
    whole = trained(recipe, scripted(script))

    class Stop(Exception): ...

    def stop(n_rounds: int) -> None:
        if n_rounds == stopped_at:
            raise Stop

    numbers = TaskNumbers([(2, 3), (4,)])
    first = Learner("t", numbers, TARGETS, recipe, scripted(script))
    with pytest.raises(Stop):
        optimise([first], losses_of([numbers]), ignore, stop)
    numbers = TaskNumbers([(2, 3), (4,)])
    second = Learner("t", numbers, TARGETS, recipe, scripted(script[stopped_at // 3 :]))
    second.restore(first.state())
    optimise([second], losses_of([numbers]), ignore)
    assert second.losses == whole.losses
    assert second.evaluations == whole.evaluations
    assert torch.equal(numbers.flat, whole.numbers.flat)
    assert second.keep_best() == whole.keep_best() == 6
    assert torch.equal(numbers.flat, whole.numbers.flat)


# ---------------------------------------------------------------- several learners


def test_learners_of_different_lengths_learn_as_if_alone() -> None:
    recipes = [RECIPE, replace(RECIPE, n_steps=5, learning_rate=0.3, clip_norm=0.01), replace(RECIPE, seed=4)]
    tasks = [TaskNumbers([(2, 3), (4,)]) for _ in recipes]
    together = [Learner(str(i), tasks[i], TARGETS, recipe) for i, recipe in enumerate(recipes)]
    optimise(together, losses_of(tasks), ignore)
    for learner, recipe in zip(together, recipes, strict=True):
        alone = trained(recipe)
        assert learner.losses == alone.losses
        assert torch.equal(learner.numbers.flat, alone.numbers.flat)


def test_the_task_that_diverges_is_named() -> None:
    tasks = [TaskNumbers([(2,)]) for _ in range(2)]
    learners = [Learner(name, numbers, TARGETS, RECIPE) for name, numbers in zip("ab", tasks, strict=True)]
    losses = [tasks[0].parts[0].sum(), tasks[1].parts[0].sum() * float("nan")]
    with pytest.raises(SetupError, match="b: the loss of step 1 is nan; lower the learning rate"):
        optimise(learners, lambda _: losses, ignore)
