"""LoRA on the same loop, data and steps: what a task costs and scores without a basis (arXiv 2106.09685)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onebasis.fitting.evaluate import Scorer, exact_match, score
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport, Progress, TaskData, train_tasks
from onebasis.fitting.training.sites import TrainableSite, TrainedTasks, in_place_of
from onebasis.fitting.training.task_numbers import TaskNumbers
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Rank and scale: dW = (alpha / rank) b a, at every linear site."""

    rank: int = 8
    alpha: float = 16.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraSite(TrainableSite):
    """dW = scale b a, with a task's parts a [rank, d_in] and b [d_out, rank]; computed in the model's dtype."""

    def __init__(self, base: nn.Linear, trained: TrainedTasks, index: int, scale: float) -> None:
        super().__init__(base, trained)
        self._index = index
        self._scale = scale

    def update(self, x: Tensor) -> Tensor:
        return self.trained.of_each_token(x, self._update_one)

    def _update_one(self, x: Tensor, task: TaskNumbers) -> Tensor:
        a, b = (part.to(x.dtype) for part in task.parts[2 * self._index : 2 * self._index + 2])
        return F.linear(F.linear(x, a), b) * self._scale


@contextmanager
def lora_sites(base: LoadedBase, shape: LoraShape, *, seed: int, n_tasks: int) -> Iterator[TrainedTasks]:
    """Put a LoRA beside every linear layer; the model is as before when the block ends.

    As usual b starts at zero and a uniform within 1 / sqrt(d_in), the same for every task.
    """
    layers = linear_sites(base.model)
    sizes = [(layer.out_features, layer.in_features) for layer in layers.values()]
    shapes = [part for d_out, d_in in sizes for part in ((shape.rank, d_in), (d_out, shape.rank))]
    trained = TrainedTasks([TaskNumbers(shapes) for _ in range(n_tasks)])
    for task in trained.tasks:
        generator = torch.Generator().manual_seed(seed)
        for a in task.parts[::2]:
            bound = a.shape[1] ** -0.5
            a.data.uniform_(-bound, bound, generator=generator)
    sites = {name: LoraSite(layer, trained, i, shape.scale) for i, (name, layer) in enumerate(layers.items())}
    with in_place_of(base, layers, sites):
        yield trained


def fit_loras(
    base: LoadedBase,
    tasks: Sequence[TaskData],
    recipe: FitRecipe,
    shape: LoraShape,
    on_step: Callable[[StepLoss], None],
    *,
    base_scores: Sequence[float | None],
    is_correct: Scorer = exact_match,
    save: Callable[[str, Mapping[str, LowRankUpdate]], None] = lambda _task, _updates: None,
) -> list[FitReport]:
    """Train a LoRA for each task as `fit_tasks` trains coefficients, and score it. The recipe's form has no say.

    Sizes are of the numbers alone in bfloat16, as adapters are commonly published.

    Args:
        base_scores: of the bare model on each task, which are known from before.
        save: called with each task's name and its updates by site.

    Raises:
        SetupError: the training diverged.
    """
    names = list(linear_sites(base.model))
    reports: list[FitReport] = []
    with lora_sites(base, shape, seed=recipe.seed, n_tasks=len(tasks)) as trained:
        results = train_tasks(base, trained, tasks, recipe, Progress(on_step), start="lora")
        for place, (data, result) in enumerate(zip(tasks, results, strict=True)):
            with trained.use(place):
                task_score = score(base, data.validation, is_correct=is_correct) if data.validation else None
            numbers = trained.tasks[place]
            size_bytes = numbers.flat.numel() * torch.bfloat16.itemsize
            reports.append(FitReport(result, size_bytes, len(data.validation), base_scores[place], task_score))
            save(data.task, dict(zip(names, _updates(numbers, shape), strict=True)))
    return reports


def _updates(task: TaskNumbers, shape: LoraShape) -> list[LowRankUpdate]:
    """Of each site, the scale folded in."""
    pairs = zip(task.parts[::2], task.parts[1::2], strict=True)
    return [LowRankUpdate(b=b.detach() * shape.scale, a=a.detach().clone()) for a, b in pairs]
