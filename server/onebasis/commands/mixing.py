"""`onebasis basis mix`: a basis with mixing cores, for tasks of the form `vector`."""

from pathlib import Path
from typing import Annotated

import typer

from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.commands.console import BasisOption, say
from onebasis.fitting.coefficient_files import read_cores
from onebasis.fitting.files import check_output
from onebasis.fitting.mixing import mix_basis


def basis_mix(
    basis: BasisOption,
    tasks: Annotated[list[Path], typer.Argument(help="Coefficient files of tasks of this basis.")],
    output: Annotated[Path, typer.Option(dir_okay=False, help="Where to write the new *.basis.safetensors file.")],
    n_mix: Annotated[int, typer.Option(help="Numbers a site that a task of form vector keeps: R.")] = 8,
) -> None:
    """Add mixing cores to a basis: the mean of these tasks' cores and their principal components."""
    check_output(output, basis, *tasks)
    spec = read_basis_spec(basis)
    mixed = mix_basis(basis, [read_cores(path, spec) for path in tasks], n_mix, output)
    held = mixed.report["mixing"]["in_sample_energy_held_by_site"].values()
    say(
        f"{output}: {len(mixed.sites)} sites with {n_mix} mixing cores from {len(tasks)} tasks, "
        f"{mixed.size_bytes / 2**20:.1f} MiB, {mixed.digest}"
    )
    say(f"energy of these tasks' cores held (in-sample): {min(held):.2f} to {max(held):.2f}, by site")
