"""`onebasis demo ...`."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import platformdirs
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from onebasis.coefficients.format import parse_coefficients
from onebasis.core.errors import InvalidData
from onebasis.demo.build_pack import N_VALIDATION, build_pack
from onebasis.demo.client import register_all
from onebasis.demo.demo_pack import PACK_STEPS, DemoPack
from onebasis.demo.embedded_model import MODEL_NAME, ensure_model
from onebasis.demo.run import pack_options, run_demo
from onebasis.demo.score import score_over_http
from onebasis.demo.server_process import ServerProcess
from onebasis.demo.tasks import DEMO_TASKS
from onebasis.fitting.data import chat_example, write_jsonl
from onebasis.fitting.training.loop import StepLoss
from onebasis.fitting.training.run import FitReport

demo_app = typer.Typer(no_args_is_help=True, help="The embedded model and the tasks trained for it.")

CacheOption = Annotated[
    Path, typer.Option(help="Folder for the converted model.", envvar="ONEBASIS_CACHE", show_default=False)
]
_TABLE_WIDTH = 132  # at least: a table with its answers cut off shows nothing
_DEFAULT_CACHE = platformdirs.user_cache_path("onebasis")


@demo_app.command()
def run(
    port: Annotated[int, typer.Option(envvar="PORT")] = 8000,
    once: Annotated[bool, typer.Option(help="Stop after the table; fail if anything failed.")] = False,
    cache: CacheOption = _DEFAULT_CACHE,
) -> None:
    """Start a server on the embedded model, ask all demo tasks at once, print the answers, go on serving."""
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(f"preparing {MODEL_NAME} in {cache} ...", markup=False)
    model = ensure_model(cache)
    pack = DemoPack.shipped()
    with tempfile.TemporaryDirectory(prefix="onebasis-demo-") as scratch:
        folder = Path(scratch)
        options = pack_options(model, pack, folder / "tasks.db")
        with ServerProcess(options, port=port, log=folder / "server.log") as server:
            console.print(f"serving {MODEL_NAME} and one shared basis on {server.url}")
            good = asyncio.run(run_demo(server.url, pack, console))
            if once:
                raise typer.Exit(0 if good else 1)
            console.print(f"still serving on {server.url}; its API: {server.url}/docs; Ctrl-C ends it")
            try:
                server.process.wait()
            except KeyboardInterrupt:
                console.print("stopping ...")


@demo_app.command()
def score(
    port: Annotated[int, typer.Option(envvar="PORT")] = 8001,
    n_items: Annotated[int, typer.Option(min=1, max=N_VALIDATION, help="Unseen items a task.")] = N_VALIDATION,
    bare: Annotated[bool, typer.Option(help="Score the bare model, too.")] = True,
    quantization: Annotated[str | None, typer.Option(help="As of `onebasis serve`.")] = None,
    cache: CacheOption = _DEFAULT_CACHE,
) -> None:
    """Measure every shipped task through HTTP again, beside the scores that its file claims."""
    pack = DemoPack.shipped()
    held_as = [] if quantization is None else ["--quantization", quantization]
    table = Table("task", "base in file", "base over HTTP", "task in file", "task over HTTP")
    with tempfile.TemporaryDirectory(prefix="onebasis-score-") as scratch:
        options = pack_options(ensure_model(cache), pack, Path(scratch) / "tasks.db")
        with ServerProcess([*options, *held_as], port=port, log=Path(scratch) / "server.log") as server:
            asyncio.run(register_all(server.url, {task: pack.coefficients(task) for task in pack.tasks()}))
            for task in pack.tasks():
                claimed = parse_coefficients(pack.coefficients(task).read_bytes()).provenance["scores"]
                found = asyncio.run(score_over_http(server.url, task, task, n_items=n_items))
                base = asyncio.run(score_over_http(server.url, MODEL_NAME, task, n_items=n_items)) if bare else None
                shown = "" if base is None else f"{base:.3f}"
                table.add_row(task, f"{claimed['base']:.3f}", shown, f"{claimed['task']:.3f}", f"{found:.3f}")
    Console().print(table)


@demo_app.command("data")
def data(
    task: Annotated[str, typer.Argument(help="One of the demo tasks.")],
    folder: Annotated[Path, typer.Argument(help="Where train.jsonl and val.jsonl go.")],
    n_train: Annotated[int, typer.Option(min=1)] = 960,
    n_val: Annotated[int, typer.Option(min=1)] = N_VALIDATION,
) -> None:
    """Write a demo task's examples as `onebasis fit` reads them."""
    if task not in DEMO_TASKS:
        raise InvalidData(f"no demo task {task!r}; there are {', '.join(DEMO_TASKS)}")
    folder.mkdir(parents=True, exist_ok=True)
    for split, name, n in (("train", "train.jsonl", n_train), ("val", "val.jsonl", n_val)):
        examples = DEMO_TASKS[task].examples("train" if split == "train" else "val", n)
        write_jsonl(folder / name, (chat_example(e.prompt, e.answer) for e in examples))


@demo_app.command()
def unpack(folder: Annotated[Path, typer.Argument(help="Where base/, basis.safetensors and tasks/ go.")]) -> None:
    """Write what a deployed server of the demo reads: base model, basis, coefficient files of the tasks."""
    base = folder / "base"
    if not base.exists():
        ensure_model(folder).rename(base)
    for file in base.iterdir():
        file.chmod(0o644)  # the server may run as another user, and weights are written for the owner alone
    DemoPack.shipped().unpack(folder)
    Console().print(f"{folder}: base, basis.safetensors, tasks", markup=False, highlight=False, soft_wrap=True)


@demo_app.command("build-pack")
def build(
    folder: Annotated[Path, typer.Argument(help="Where the pack goes; made if it is not there.")],
    basis: Annotated[Path | None, typer.Option(help="The basis to train in; by default the one that ships.")] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Only these; by default the whole pack.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads.")] = None,
    cache: CacheOption = _DEFAULT_CACHE,
) -> None:
    """Train the demo's tasks anew, inside a basis. About an hour on one core."""
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = tasks or list(PACK_STEPS)
    unknown = sorted(set(chosen) - PACK_STEPS.keys())
    if unknown:
        raise InvalidData(f"no task {unknown[0]!r} in the pack; there are {', '.join(PACK_STEPS)}")
    console = Console()
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("steps", total=sum(PACK_STEPS[task] for task in chosen))

        def on_step(task: str, step: StepLoss) -> None:
            progress.update(bar, advance=1, description=f"{task} loss {step.loss:.3f}")

        def on_task(task: str, report: FitReport) -> None:
            console.print(
                f"{task}: exact match base {report.base_score:.2f}, task {report.task_score:.2f}, "
                f"loss {report.training.final_loss:.3f}, {report.training.train_s:.0f} s"
            )

        folder.mkdir(parents=True, exist_ok=True)
        build_pack(
            ensure_model(cache),
            DemoPack(folder),
            base_name=MODEL_NAME,
            basis_path=basis or DemoPack.shipped().basis,
            tasks=chosen,
            on_step=on_step,
            on_task=on_task,
        )
