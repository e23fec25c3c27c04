"""`onebasis fit`: train one task's coefficients."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from onebasis.commands.console import BasisOption, ModelOption, ThreadsOption, progress_bars, say, set_threads
from onebasis.core.ids import parse_task_name
from onebasis.fitting.data import read_jsonl, split, tokenize
from onebasis.fitting.training.job import fit_task
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base


def fit_command(
    model: ModelOption,
    basis: BasisOption,
    data: Annotated[Path, typer.Option(help="JSON lines of {prompt, completion} or {messages}.")],
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.coef.safetensors file.")
    ],
    task: Annotated[str, typer.Option(help="Name of the task.")],
    validation: Annotated[
        Path | None, typer.Option(help="JSON lines to score on; by default a tenth of the data, at most 64.")
    ] = None,
    form: Annotated[str, typer.Option(help="core, or diag for the diagonal alone.")] = "core",
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-2,
    seed: Annotated[int, typer.Option()] = 0,
    max_example_tokens: Annotated[int, typer.Option(min=2)] = 512,
    threads: ThreadsOption = None,
) -> None:
    """Train one task's coefficients inside a fixed basis."""
    parse_task_name(task)
    recipe = FitRecipe(form=form, n_steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    set_threads(threads)
    device = torch.device("cpu")
    base = load_base(model, dtype=torch.bfloat16, device=device)
    loaded = load_basis(basis, dtype=torch.bfloat16, device=device)
    examples = tokenize(read_jsonl(data), base.tokenizer, max_tokens=max_example_tokens)
    if validation is None:
        examples, held_out = split(examples, n_validation=min(64, len(examples) // 10), seed=seed)
    else:
        held_out = tokenize(read_jsonl(validation), base.tokenizer, max_tokens=max_example_tokens)
    with progress_bars() as progress:
        bar = progress.add_task(task, total=steps)

        def on_step(step: StepLoss) -> None:
            progress.update(bar, advance=1, description=f"{task} loss {step.loss:.3f}")

        report = fit_task(base, loaded, examples, held_out, task=task, recipe=recipe, output=output, on_step=on_step)
    say(
        f"{output}: {report.size_bytes} bytes, loss {report.first_loss:.3f} -> {report.final_loss:.3f} "
        f"in {report.train_s:.0f} s"
    )
    if report.task_score is not None:
        say(f"exact match on {len(held_out)} unseen items: base {report.base_score:.2f}, task {report.task_score:.2f}")
