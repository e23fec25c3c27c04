"""`onebasis fit`: train tasks' coefficients."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from onebasis.commands.console import BasisOption, ModelOption, ThreadsOption, progress_bars, say, set_threads
from onebasis.commands.fit_data import output_files, task_files
from onebasis.core.errors import SetupError
from onebasis.fitting.data import read_jsonl, split, tokenize
from onebasis.fitting.training.job import fit_tasks
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.lora_baseline import LoraShape, fit_loras
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport, Progress, TaskData
from onebasis.model.factors import load_basis
from onebasis.model.loader import LoadedBase, load_base


def fit_command(
    model: ModelOption,
    basis: BasisOption,
    data: Annotated[
        list[str],
        typer.Option(
            help="JSON lines of {prompt, completion} or {messages}: a file, NAME=FILE (may be repeated), "
            "or a folder of NAME.jsonl. Several tasks train side by side."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Where to write: a *.safetensors file for one task, else a folder for NAME files.")
    ],
    task: Annotated[str | None, typer.Option(help="Name of the task; by default the data file's.")] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Data to score on, given like --data; by default a tenth of the data, at most 64 items."),
    ] = None,
    form: Annotated[str, typer.Option(help="core; diag, the diagonal alone; vector, a mix of mixing cores.")] = "core",
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of each task in a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-2,
    seed: Annotated[int, typer.Option()] = 0,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validation losses; the best step is kept. Default: never.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a task's training after so many evaluations without a new best.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File to save the run to as it goes; removed at its end.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two savings of the checkpoint.")] = 25,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train a LoRA (r=8, alpha=16, all sites) on the same data and steps.")
    ] = False,
    lora_learning_rate: Annotated[float, typer.Option(min=0.0, help="For --compare.")] = 1e-3,
    max_example_tokens: Annotated[int, typer.Option(min=2)] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Train tasks' coefficients inside a fixed basis."""
    if resume and checkpoint is None:
        raise SetupError("--resume needs --checkpoint, the file to go on from")
    recipe = FitRecipe(
        form=form,
        n_steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        evaluate_every=evaluate_every,
        patience=patience,
    )
    files = task_files("--data", data, task)
    only_task = next(iter(files)) if len(files) == 1 else None
    held_out = task_files("--validation", validation, only_task) if validation else {}
    if held_out and held_out.keys() != files.keys():
        raise SetupError(f"--validation has {', '.join(held_out)}, --data has {', '.join(files)}; give the same tasks")
    outputs = output_files(output, list(files))
    set_threads(threads)
    base = load_base(model, dtype=torch.bfloat16, device=torch.device("cpu"))
    loaded = load_basis(basis, dtype=torch.bfloat16, device=torch.device("cpu"))
    tasks = [
        _task_data(base, name, path, held_out.get(name), outputs[name], max_example_tokens, seed)
        for name, path in files.items()
    ]
    with _step_bars(tasks, steps) as on_step:
        progress = Progress(on_step, checkpoint, save_every, resume)
        reports = {form: fit_tasks(base, loaded, tasks, recipe, progress)}
    if compare:
        lora = LoraShape()
        base_scores = [report.base_score for report in reports[form]]
        with _step_bars(tasks, steps) as on_step:
            lora_recipe = replace(recipe, learning_rate=lora_learning_rate)
            loras = fit_loras(base, tasks, lora_recipe, lora, on_step, base_scores=base_scores)
        reports[f"LoRA r={lora.rank}"] = loras
    if checkpoint is not None:
        checkpoint.unlink()
    if as_json:
        say(json.dumps([_as_json(data, kind, report) for kind, data, report in _rows(reports, tasks)], indent=1))
    else:
        _print_table(reports, tasks)


def _task_data(
    base: LoadedBase, name: str, path: Path, held_out: Path | None, output: Path, max_tokens: int, seed: int
) -> TaskData:
    examples = tokenize(read_jsonl(path), base.tokenizer, max_tokens=max_tokens)
    if held_out is None:
        train, validation = split(examples, n_validation=min(64, len(examples) // 10), seed=seed)
    else:
        train, validation = examples, tokenize(read_jsonl(held_out), base.tokenizer, max_tokens=max_tokens)
    return TaskData(name, train, validation, output)


@contextmanager
def _step_bars(tasks: Sequence[TaskData], n_steps: int) -> Iterator[Callable[[StepLoss], None]]:
    """A progress bar for each task; what is given takes the news of a step."""
    with progress_bars() as progress:
        bars = {data.task: progress.add_task(data.task, total=n_steps) for data in tasks}

        def on_step(step: StepLoss) -> None:
            shown = f"{step.task} loss {step.loss:.3f}"
            progress.update(bars[step.task], completed=step.step, description=shown)

        yield on_step


Row = tuple[str, TaskData, FitReport]


def _rows(reports: dict[str, list[FitReport]], tasks: Sequence[TaskData]) -> list[Row]:
    """Kind of update, task, report; task after task."""
    return [(kind, data, of_kind[place]) for place, data in enumerate(tasks) for kind, of_kind in reports.items()]


def _print_table(reports: dict[str, list[FitReport]], tasks: Sequence[TaskData]) -> None:
    table = Table("task", "trained", "bytes", "exact match: base", "task", "items", "loss", "step kept", "of", "s")
    for kind, data, report in _rows(reports, tasks):
        run = report.training
        table.add_row(
            data.task,
            kind,
            str(report.size_bytes),
            _score(report.base_score),
            _score(report.task_score),
            str(report.n_validation),
            f"{run.first_loss:.3f} -> {run.final_loss:.3f}",
            str(run.kept_step),
            str(run.n_steps),
            f"{run.train_s:.0f}",
        )
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"


def _as_json(data: TaskData, kind: str, report: FitReport) -> dict[str, Any]:
    """One task's report; `output` is null for a LoRA, which is not written."""
    return asdict(report) | {"trained": kind, "output": None if kind.startswith("LoRA") else str(data.output)}
