"""Rebuild the demo pack: every task's coefficients, by training inside a basis. About an hour."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from onebasis.demo.demo_pack import PACK_STEPS, DemoPack
from onebasis.demo.tasks import DEMO_TASKS, DemoTask, Example
from onebasis.fitting.data import TokenExample, chat_example, tokenize
from onebasis.fitting.training.job import fit_task
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport
from onebasis.model.factors import load_basis
from onebasis.model.loader import LoadedBase, load_base

N_TRAIN = 960
N_VALIDATION = 64
MAX_EXAMPLE_TOKENS = 128
LEARNING_RATE = 1.2e-2
METRIC = "normalised_exact_match"  # DemoTask.is_correct


def build_pack(
    model_folder: Path,
    pack: DemoPack,
    *,
    base_name: str,
    basis_path: Path,
    tasks: Sequence[str],
    on_step: Callable[[str, StepLoss], None],
    on_task: Callable[[str, FitReport], None],
) -> None:
    """Train `tasks` into `pack`, inside the basis at `basis_path`, which is copied there.

    Raises:
        InvalidModel, InvalidBasis, OSError.
    """
    device = torch.device("cpu")
    base = load_base(model_folder, dtype=torch.bfloat16, device=device, name=base_name)
    if basis_path != pack.basis:
        shutil.copyfile(basis_path, pack.basis)
    basis = load_basis(pack.basis, dtype=torch.bfloat16, device=device)
    for name in tasks:
        task = DEMO_TASKS[name]
        report = fit_task(
            base,
            basis,
            _tokens(base, task.examples("train", N_TRAIN)),
            _tokens(base, task.examples("val", N_VALIDATION)),
            task=name,
            recipe=FitRecipe(n_steps=PACK_STEPS[name], learning_rate=LEARNING_RATE),
            output=pack.coefficients(name),
            on_step=partial(on_step, name),
            is_correct=_scorer(task),
            metric=METRIC,
        )
        on_task(name, report)


def _tokens(base: LoadedBase, examples: Sequence[Example]) -> list[TokenExample]:
    chats = [chat_example(example.prompt, example.answer) for example in examples]
    return tokenize(chats, base.tokenizer, max_tokens=MAX_EXAMPLE_TOKENS)


def _scorer(task: DemoTask) -> Callable[[str, TokenExample], bool]:
    return lambda output, example: task.is_correct(output, example.answer)
