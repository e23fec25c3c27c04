"""`onebasis fit`: train tasks' coefficients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import torch
import typer

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.commands.console import (
    LARGEST_SEED,
    BasisOption,
    ModelOption,
    ThreadsOption,
    progress_bars,
    say,
    set_threads,
)
from onebasis.commands.fit_data import output_files, task_files
from onebasis.commands.fit_outcomes import Outcome, outcomes_as_json, print_outcomes
from onebasis.core.errors import SetupError
from onebasis.fitting.data import read_examples, split
from onebasis.fitting.files import check_output
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.peft.export import check_new, write_adapter
from onebasis.fitting.training.job import fit_tasks
from onebasis.fitting.training.learned_mixing import fit_with_mixing
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.lora_baseline import LoraShape, fit_loras
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import SHARED, FitReport, Progress, TaskData
from onebasis.model.factors import load_basis
from onebasis.model.loader import LoadedBase, load_base

_N_MIX: Final = 8
_SAVE_EVERY: Final = 25
_LORA_LEARNING_RATE: Final = 1e-3


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
    learn_mixing: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="For --form vector: learn the mixing cores over these tasks too, and write the basis with them here.",
        ),
    ] = None,
    n_mix: Annotated[
        int | None,
        typer.Option(min=1, help="For --learn-mixing: numbers a site, R. Default: the basis's, 8 if it has none."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of each task in a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-2,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED)] = 0,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validation losses; the best step is kept. Default: never.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="End a task's training after so many evaluations without a new best.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(dir_okay=False, help="New file to save the run to as it goes; removed at its end.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="For --checkpoint: steps between two savings; 25.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train a LoRA (r=8, alpha=16, all sites) on the same data and steps.")
    ] = False,
    lora_learning_rate: Annotated[float | None, typer.Option(min=0.0, help="For --compare; 0.001.")] = None,
    lora_output: Annotated[
        Path | None, typer.Option(file_okay=False, help="For --compare: save each LoRA as a PEFT adapter, DIR/NAME.")
    ] = None,
    max_example_tokens: Annotated[int, typer.Option(min=2)] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    threads: ThreadsOption = None,
) -> None:
    """Train tasks' coefficients inside a fixed basis."""
    if n_mix is not None and learn_mixing is None:
        raise SetupError("--n-mix is for --learn-mixing; a basis's mixing cores have their number")
    _check_checkpoint(checkpoint, save_every, resume=resume)
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
    if task is not None and [*files] != [task]:
        raise SetupError(f"--task {task} names one task, --data has {', '.join(files)}; leave --task out")
    only_task = next(iter(files)) if len(files) == 1 else None
    held_out = task_files("--validation", validation, only_task) if validation else {}
    if held_out and held_out.keys() != files.keys():
        raise SetupError(f"--validation has {', '.join(held_out)}, --data has {', '.join(files)}; give the same tasks")
    outputs = output_files(output, list(files))
    lora_recipe = _lora_recipe(recipe, lora_learning_rate, compare=compare)
    lora_folders = _lora_folders(lora_output, list(files), compare=compare)
    for written in (*outputs.values(), learn_mixing, checkpoint):
        if written is not None:
            check_output(written, basis, *files.values(), *held_out.values())
    set_threads(threads)
    base = load_base(model, dtype=torch.bfloat16, device=torch.device("cpu"))
    loaded = load_basis(basis, dtype=torch.bfloat16, device=torch.device("cpu"))
    tasks = [
        _task_data(base, name, path, held_out.get(name), outputs[name], max_example_tokens, seed)
        for name, path in files.items()
    ]
    mixed: BasisSpec | None = None
    with _step_bars([*files] if learn_mixing is None else [*files, SHARED], steps) as on_step:
        progress = Progress(on_step, checkpoint, save_every or _SAVE_EVERY, resume)
        if learn_mixing is None:
            fitted = fit_tasks(base, loaded, tasks, recipe, progress)
        else:
            count = n_mix or loaded.spec.sites[0].n_mix or _N_MIX
            mixed, fitted = fit_with_mixing(base, loaded, basis, tasks, recipe, count, learn_mixing, progress)
    made_for = (mixed or loaded.spec).digest
    outcomes = [
        Outcome(form, data.task, report, data.output, made_for) for data, report in zip(tasks, fitted, strict=True)
    ]
    if lora_recipe is not None:
        outcomes += _fit_loras(base, tasks, lora_recipe, fitted, lora_folders)
    if checkpoint is not None:
        checkpoint.unlink()
    if as_json:
        say(outcomes_as_json(outcomes))
        return
    print_outcomes(outcomes)
    if mixed is not None:
        say(
            f"{learn_mixing}: {len(mixed.sites)} sites with {mixed.sites[0].n_mix} mixing cores learnt on {len(tasks)} "
            f"tasks, {mixed.size_bytes / 2**20:.1f} MiB, {mixed.digest}"
        )


def _check_checkpoint(checkpoint: Path | None, save_every: int | None, *, resume: bool) -> None:
    """Refuse options of a checkpoint without one, and to write over a run that could be gone on with."""
    if checkpoint is None:
        if resume:
            raise SetupError("--resume needs --checkpoint, the file to go on from")
        if save_every is not None:
            raise SetupError("--save-every needs --checkpoint, the file to save to")
    elif checkpoint.exists() and not resume:
        raise SetupError(f"checkpoint {checkpoint}: exists; go on from it with --resume, or name a new file")


def _lora_recipe(recipe: FitRecipe, learning_rate: float | None, *, compare: bool) -> FitRecipe | None:
    """As the tasks are trained, at another rate; None where no LoRA is."""
    if compare:
        return replace(recipe, learning_rate=_LORA_LEARNING_RATE if learning_rate is None else learning_rate)
    if learning_rate is not None:
        raise SetupError("--lora-learning-rate needs --compare, which trains the LoRA")
    return None


def _lora_folders(folder: Path | None, tasks: Sequence[str], *, compare: bool) -> dict[str, Path]:
    """Where each task's LoRA goes; empty where none is to be saved."""
    if folder is None:
        return {}
    if not compare:
        raise SetupError("--lora-output needs --compare, which trains the LoRA")
    folders = {task: folder / task for task in tasks}
    for one in folders.values():
        check_new(one)
    return folders


def _task_data(
    base: LoadedBase, name: str, path: Path, held_out: Path | None, output: Path, max_tokens: int, seed: int
) -> TaskData:
    examples = read_examples(path, base.tokenizer, max_tokens=max_tokens)
    if held_out is None:
        train, validation = split(examples, n_validation=min(64, len(examples) // 10), seed=seed)
    else:
        train, validation = examples, read_examples(held_out, base.tokenizer, max_tokens=max_tokens)
    return TaskData(name, train, validation, output)


def _fit_loras(
    base: LoadedBase,
    tasks: Sequence[TaskData],
    recipe: FitRecipe,
    fitted: Sequence[FitReport],
    folders: Mapping[str, Path],
) -> list[Outcome]:
    """Each task's LoRA on the same data; `folders` say where to save them, none where they are not."""
    shape = LoraShape()

    def save(task: str, updates: Mapping[str, LowRankUpdate]) -> None:
        if task in folders:
            write_adapter(updates, base.model, folders[task], base_model=base.name, dtype=base.model.dtype)

    with _step_bars([data.task for data in tasks], recipe.n_steps) as on_step:
        base_scores = [report.base_score for report in fitted]
        reports = fit_loras(base, tasks, recipe, shape, on_step, base_scores=base_scores, save=save)
    return [
        Outcome(f"LoRA r={shape.rank}", data.task, report, folders.get(data.task), basis=None)
        for data, report in zip(tasks, reports, strict=True)
    ]


@contextmanager
def _step_bars(names: Sequence[str], n_steps: int) -> Iterator[Callable[[StepLoss], None]]:
    """A progress bar for each task or what else learns; what is given takes the news of a step."""
    with progress_bars() as progress:
        bars = {name: progress.add_task(name, total=n_steps) for name in names}

        def on_step(step: StepLoss) -> None:
            shown = f"{step.task} loss {step.loss:.3f}"
            progress.update(bars[step.task], completed=step.step, description=shown)

        yield on_step
