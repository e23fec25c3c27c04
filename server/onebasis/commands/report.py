"""`onebasis report`: what a basis keeps of adapters and tasks."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from onebasis.coefficients.validate import BoundCoefficients
from onebasis.commands.console import (
    LARGEST_SEED,
    BasisOption,
    ModelOption,
    ThreadsOption,
    complain,
    progress_bars,
    say,
    set_threads,
)
from onebasis.core.errors import InvalidReport
from onebasis.fitting.coefficient_files import read_cores, short_name
from onebasis.fitting.data import read_examples
from onebasis.fitting.files import check_folder, write_whole
from onebasis.fitting.peft.adapter import PeftAdapter, open_adapter
from onebasis.fitting.peft.sites import site_shapes
from onebasis.fitting.report.functional import Subject
from onebasis.fitting.report.measure import ReportSettings, count_ways, measure_report
from onebasis.fitting.report.results import Report
from onebasis.model.factors import load_basis
from onebasis.model.loader import LoadedBase, load_base

Renderer = Callable[[Report], str]


def report_command(
    model: ModelOption,
    basis: BasisOption,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for report.html and report.json.")],
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, file_okay=False, help="PEFT adapters.", metavar="[ADAPTER_DIR]..."),
    ] = None,
    tasks: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Coefficient file to score; may come again.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of NAME.jsonl, held-out items of the adapter or task NAME."
        ),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Use at most so many of each file, the first ones.")] = 64,
    leave_one_out: Annotated[bool, typer.Option(help="Also make bases without each adapter.")] = True,
    sweeps: Annotated[int, typer.Option(min=0, help="Alternations when bases are made anew.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the null and of random bases.")] = 0,
    max_example_tokens: Annotated[int, typer.Option(min=2)] = 512,
    threads: ThreadsOption = None,
) -> None:
    """Measure what a basis keeps of adapters and tasks, with every baseline beside it."""
    to_html, to_json = _renderers()
    check_folder(output)
    set_threads(threads)
    device = torch.device("cpu")
    base = load_base(model, dtype=torch.bfloat16, device=device)
    loaded = load_basis(basis, dtype=torch.float32, device=device)
    shapes = site_shapes(base.model)
    opened = [open_adapter(folder, shapes) for folder in adapters or ()]
    files = {path: read_cores(path, loaded.spec) for path in tasks or ()}
    subjects = [] if data is None else _subjects(base, data, opened, files, items, max_example_tokens)
    if files and data is None:
        raise InvalidReport("--tasks are scored on data; give --data")
    settings = ReportSettings(leave_one_out=leave_one_out, n_sweeps=sweeps, seed=seed)
    with progress_bars() as progress:
        sites = progress.add_task("sites", total=len(loaded.spec.sites) if opened else 0)
        ways = progress.add_task("scores", total=count_ways(subjects, opened, settings))
        report = measure_report(
            base,
            loaded,
            opened,
            subjects,
            settings,
            on_site=lambda: progress.advance(sites),
            on_way=lambda: progress.advance(ways),
        )
    write_whole(output / "report.html", to_html(report).encode())
    write_whole(output / "report.json", to_json(report).encode())
    _tell(report)
    say(f"{output / 'report.html'}, {output / 'report.json'}")


def _renderers() -> tuple[Renderer, Renderer]:
    """Of the page and of JSON. Asked for before anything is measured: pictures need a library of an extra."""
    try:
        from onebasis.fitting.report.page import report_html, report_json
    except ImportError as error:
        raise InvalidReport(f"pictures need {error.name}; pip install '.[report]' in the project") from error
    return report_html, report_json


def _subjects(
    base: LoadedBase,
    data: Path,
    adapters: Sequence[PeftAdapter],
    files: Mapping[Path, BoundCoefficients],
    n_items: int,
    max_tokens: int,
) -> list[Subject]:
    """One for each file of items whose name an adapter or a task has; others are named and left out."""
    by_name = {adapter.name: adapter for adapter in adapters}
    counts = Counter(map(short_name, files))
    labels = {file: short_name(file) if counts[short_name(file)] == 1 else str(file) for file in files}
    paths = {path.stem: path for path in sorted(data.glob("*.jsonl"))}
    for path, bound in files.items():
        if bound.file.task not in paths:
            raise InvalidReport(f"{path}: its task is {bound.file.task!r}, and {data} has no such .jsonl file")
    subjects: list[Subject] = []
    for name, path in paths.items():
        own = {labels[file]: bound for file, bound in files.items() if bound.file.task == name}
        if name not in by_name and not own:
            complain(f"{path}: no adapter and no task is called {name!r}; left out")
            continue
        examples = read_examples(path, base.tokenizer, max_tokens=max_tokens, at_most=n_items)
        subjects.append(Subject(name, examples, by_name.get(name), own))
    if not subjects:
        raise InvalidReport(f"{data}: no file is named after an adapter or a task; name them NAME.jsonl")
    return subjects


def _tell(report: Report) -> None:
    """The few numbers that say most; the rest is on the page."""
    if report.weights is not None:
        last = report.weights.null[-1]
        shares = {
            "this basis, in-sample": last.in_sample,
            "this basis, held out": last.held_out,
            "made anew from all, in-sample": last.refitted,
            "made anew without the adapter": last.left_out,
            "random adapters, in-sample": last.null_in_sample,
            "new random adapter": last.null_new,
        }
        measured = (f"{name} {share:.3f}" for name, share in shares.items() if share is not None)
        say(f"energy held at k={last.k}: {'; '.join(measured)}")
        for adapter in report.weights.adapters:
            if adapter.outside:
                complain(f"{adapter.name}: {adapter.outside:.3f} of its energy is at sites that the basis has not")
        for group in report.weights.seed_groups:
            complain(f"these adapters share their random start: {', '.join(group)}")
    for task in report.tasks:
        say(f"{task.task}: " + ", ".join(f"{way.way} {way.exact_match:.2f}" for way in task.ways))
