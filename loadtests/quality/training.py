"""The ways that train: coefficients inside a basis, from labelled items or from the adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtests.quality.cells import Cell
from loadtests.quality.material import Fleet
from loadtests.quality.ways import BYTES_PER_NUMBER, Answerer
from onebasis.coefficients.format import parse_coefficients
from onebasis.fitting.core_updates import core_updates, file_cores
from onebasis.fitting.distillation.job import Progress, PromptSet, distill_adapter
from onebasis.fitting.fidelity import Updates
from onebasis.fitting.training.job import fit_task
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.lora_baseline import LoraShape, fit_loras
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import TaskData
from onebasis.model.factors import Basis

MAX_ANSWER_TOKENS: Final = 48
OnStep = Callable[[StepLoss], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """`facts` go into the result's row."""

    answerer: Answerer
    facts: dict[str, Any]


def fitted(fleet: Fleet, basis: Basis, cell: Cell, output: Path, on_step: OnStep) -> Trained:
    """Train on the task's items; a file that is there from a run that was stopped before its score is taken."""
    recipe = recipe_of(cell)
    if not output.is_file():
        train = fleet.train(cell.task)
        fit_task(fleet.base, basis, train, [], task=cell.task, recipe=recipe, output=output, on_step=on_step)
    return _of_file(output, basis)


def distilled(fleet: Fleet, basis: Basis, cell: Cell, output: Path, on_step: OnStep) -> Trained:
    """Train on the prompts of the task's items and the fleet's adapter; as `fitted`, it goes on from its file."""
    recipe = recipe_of(cell)
    if not output.is_file():
        learning = dict.fromkeys(example.prompt_ids for example in fleet.train(cell.task))
        unseen = [example.prompt_ids for example in fleet.validation(cell.task)]

        def on_progress(news: Progress) -> None:
            if news.loss is not None:
                on_step(StepLoss(news.done, news.loss))

        distill_adapter(
            fleet.base,
            basis,
            fleet.adapter(cell.task, cell.seed),
            PromptSet(list(learning), unseen, {"source": "training items"}),
            task=cell.task,
            recipe=recipe,
            max_answer_tokens=MAX_ANSWER_TOKENS,
            output=output,
            on_progress=on_progress,
        )
    return _of_file(output, basis)


def lora_fitted(fleet: Fleet, cell: Cell, on_step: OnStep) -> Trained:
    """Train a LoRA on the task's items; it is not kept."""
    found: dict[str, Updates] = {}
    data = TaskData(cell.task, fleet.train(cell.task), [], Path(cell.task))
    reports = fit_loras(
        fleet.base, [data], recipe_of(cell), LoraShape(), on_step, base_scores=[None], save=found.__setitem__
    )
    result = reports[0].training
    loss = {"first": round(result.first_loss, 4), "mean_of_last_10": round(result.final_loss, 4)}
    facts = {"loss": loss, "train_s": round(result.train_s, 1)}
    return Trained(Answerer(found[cell.task], reports[0].size_bytes), facts)


def recipe_of(cell: Cell) -> FitRecipe:
    """Raises ValueError for a cell that trains nothing."""
    if cell.steps is None or cell.learning_rate is None:
        raise ValueError(f"{cell}: needs steps and learning_rate")
    return FitRecipe(form=cell.form or "core", n_steps=cell.steps, learning_rate=cell.learning_rate, seed=cell.seed)


def _of_file(path: Path, basis: Basis) -> Trained:
    """What a coefficient file amounts to, with what its provenance says of the training."""
    data = path.read_bytes()
    file = parse_coefficients(data)
    facts = {name: file.provenance[name] for name in ("loss", "train_s", "fidelity") if name in file.provenance}
    updates = core_updates(basis, file_cores(data, basis))
    size_bytes = BYTES_PER_NUMBER * file.values.size
    return Trained(Answerer(updates, size_bytes), facts | {"file_bytes": file.size_bytes, "file": path.name})
