"""`onebasis import` and `onebasis export`: between PEFT LoRA adapters and coefficient files."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.commands.console import BasisOption, ModelOption, ThreadsOption, progress_bars, say, set_threads
from onebasis.core.errors import SetupError
from onebasis.core.ids import parse_task_name
from onebasis.fitting.calibration import OutputFidelity, project_for_inputs
from onebasis.fitting.data import read_examples
from onebasis.fitting.files import check_output, write_whole
from onebasis.fitting.peft.adapter import PeftAdapter, open_adapter
from onebasis.fitting.peft.export import export_peft
from onebasis.fitting.peft.import_job import ImportReport, ImportSettings, import_adapter
from onebasis.fitting.peft.sites import site_shapes
from onebasis.fitting.projection import Projection, project
from onebasis.model.factors import Basis, checked_fingerprint, load_basis
from onebasis.model.loader import LoadedBase, load_base

_CPU = torch.device("cpu")


class ExportKind(StrEnum):
    """What a task can be written as."""

    PEFT = "peft"


def import_command(
    adapter: Annotated[Path, typer.Argument(help="Folder of a PEFT LoRA adapter.")],
    basis: BasisOption,
    model: ModelOption,
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.coef.safetensors file.")
    ],
    task: Annotated[str | None, typer.Option(help="Name of the task; by default the folder's.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Use the first k rows of the basis.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="JSON lines as for fit: keep the adapter's outputs on this text rather than its weights."),
    ] = None,
    residual: Annotated[
        int, typer.Option(min=0, help="Rank of what is kept beside the basis at each site; it costs as a LoRA does.")
    ] = 0,
    min_energy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Write nothing if less of the adapter is kept.")
    ] = 0.5,
    max_example_tokens: Annotated[int, typer.Option(min=2, help="Of the calibration text.")] = 512,
    threads: ThreadsOption = None,
) -> None:
    """Project a PEFT LoRA adapter into a basis: quick, lossy, and says how much is lost."""
    name = parse_task_name(task or adapter.resolve().name)
    settings = ImportSettings(task=name, k=k, residual_rank=residual, min_energy=min_energy)
    check_output(output, basis)
    set_threads(threads)
    base = load_base(model, dtype=torch.bfloat16, device=_CPU)
    loaded = load_basis(basis, dtype=torch.float32, device=_CPU)
    checked_fingerprint(base.model, loaded)
    if k is not None and k > loaded.spec.largest_k:
        raise SetupError(f"k={k}: this basis has {loaded.spec.largest_k} rows; give fewer, or leave --k out for all")
    opened = open_adapter(adapter, site_shapes(base.model))
    if calibration is None:
        projection, outputs = project(opened, loaded, k), None
    else:
        projection, outputs = _calibrated(opened, loaded, base, calibration, max_example_tokens, k)
    data, report = import_adapter(opened, loaded, projection, settings, outputs)
    write_whole(output, data)
    _tell(output, len(data), opened, report, residual)


def export_command(
    task_file: Annotated[Path, typer.Argument(help="A *.coef.safetensors file.")],
    basis: BasisOption,
    model: ModelOption,
    output: Annotated[Path, typer.Option(file_okay=False, help="A new folder for the adapter.")],
    to: Annotated[ExportKind, typer.Option(help="What to write.")] = ExportKind.PEFT,
    base_name: Annotated[str | None, typer.Option(help="What the adapter calls its base model.")] = None,
) -> None:
    """Write a task as a plain PEFT LoRA adapter, exact, its residual stacked in."""
    base = load_base(model, dtype=torch.bfloat16, device=_CPU, name=base_name)
    loaded = load_basis(basis, dtype=torch.float32, device=_CPU)
    checked_fingerprint(base.model, loaded)
    task = bind(parse_coefficients(task_file.read_bytes()), loaded.spec)
    name = base_name or loaded.spec.base_model
    report = export_peft(task, loaded, base.model, output, base_model=name)
    ranks = ", ".join(map(str, report.ranks))
    say(f"{output}: {to.upper()} LoRA of rank {ranks} at {report.n_sites} sites, {report.size_bytes} bytes, scale 1")


def _calibrated(
    adapter: PeftAdapter, basis: Basis, base: LoadedBase, text: Path, max_tokens: int, k: int | None
) -> tuple[Projection, OutputFidelity]:
    examples = read_examples(text, base.tokenizer, max_tokens=max_tokens)
    with progress_bars() as progress:
        bar = progress.add_task("calibration", total=len(examples))
        return project_for_inputs(adapter, basis, base, examples, lambda: progress.advance(bar), k)


def _tell(output: Path, size_bytes: int, adapter: PeftAdapter, report: ImportReport, residual_rank: int) -> None:
    ranks, scales = (", ".join(f"{one:g}" for one in some) for some in (adapter.ranks, adapter.scales))
    say(f"{output}: {size_bytes} bytes, {report.core_bytes} of them coefficients of {report.n_sites} sites")
    say(f"adapter {adapter.name}: rank {ranks}, scale {scales} (folded in), {adapter.digest}")
    say(
        f"energy kept by the cores: {report.energy_kept:.3f}; "
        f"a random basis of this size would keep {report.energy_kept_by_random:.4f}"
    )
    if report.outputs is not None:
        say(
            f"outputs kept on {report.outputs.n_tokens} tokens of calibration: {report.outputs.kept:.3f}; "
            f"cores nearest in weights would keep {report.outputs.kept_unweighted:.3f}"
        )
    if report.energy_kept_with_residual is not None:
        say(
            f"residual of rank {residual_rank}: {report.residual_bytes} bytes on top, "
            f"energy kept with it: {report.energy_kept_with_residual:.3f}"
        )
    say("worst sites: " + ", ".join(f"{site} {kept:.3f}" for site, kept in report.worst))
    if report.n_sites_without_basis:
        say(f"{report.n_sites_without_basis} sites of the adapter are not in the basis and are lost")
    say("energy is no score: measure the task before you rely on it")
