"""`onebasis basis`: make a shared basis."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from onebasis.commands.console import ModelOption, ThreadsOption, progress_bars, say, set_threads
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.model.loader import load_base
from onebasis.model.sites import linear_sites

basis_app = typer.Typer(no_args_is_help=True, help="Make a shared basis.")


@basis_app.command("build")
def basis_build(
    model: ModelOption,
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.basis.safetensors file.")
    ],
    kind: Annotated[BasisKind, typer.Option(help="Where the directions come from.")] = BasisKind.BASE_SVD,
    k: Annotated[int, typer.Option(help="Rows of each factor.")] = 16,
    seed: Annotated[int, typer.Option(help="For --kind random.")] = 0,
    base_name: Annotated[str | None, typer.Option(help="Name to note for the base model.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Make a basis from the base model alone."""
    set_threads(threads)
    base = load_base(model, dtype=torch.bfloat16, device=torch.device("cpu"), name=base_name)
    with progress_bars() as progress:
        bar = progress.add_task("sites", total=len(linear_sites(base.model)))
        spec = build_basis(base, kind=kind, k=k, seed=seed, path=output, progress=lambda _site: progress.advance(bar))
    say(f"{output}: {spec.kind}, {len(spec.sites)} sites, k={k}, {spec.size_bytes / 2**20:.1f} MiB, {spec.digest}")
