"""`onebasis basis`: make a shared basis, extend it, carry coefficient files over to the extended one."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import torch
import typer

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.lineage import Ancestor
from onebasis.commands.basis_options import Kind, SizeOptions, refuse
from onebasis.commands.console import (
    LARGEST_SEED,
    ModelOption,
    ThreadsOption,
    complain,
    progress_bars,
    say,
    set_threads,
)
from onebasis.core.errors import CoefficientError, InvalidBasis, InvalidFile, SetupError
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.fitting.basis.extend import check_rows, open_old_basis
from onebasis.fitting.basis.fleet import FleetRecipe, build_fleet_basis
from onebasis.fitting.basis.folders import adapter_folders, read_weights
from onebasis.fitting.basis.readdress import Readdressed, readdress
from onebasis.fitting.basis.seed_groups import one_of_each, seed_groups
from onebasis.fitting.basis.sizes import FixedSize
from onebasis.fitting.files import check_folder, check_output, write_whole
from onebasis.fitting.peft.adapter import PeftAdapter, open_adapter
from onebasis.fitting.peft.sites import site_shapes
from onebasis.model.loader import LoadedBase, load_base
from onebasis.model.sites import linear_sites

_SWEEPS: Final = 8

basis_app = typer.Typer(no_args_is_help=True, help="Make a shared basis.")


@basis_app.command("build")
def basis_build(
    model: ModelOption,
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.basis.safetensors file.")
    ],
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, file_okay=False, help="PEFT adapters, or folders of them; fleet and mixed."),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Where the directions come from.")] = Kind.BASE_SVD,
    k: Annotated[int | None, typer.Option(help="Rows of each factor, 16 if nothing else says.")] = None,
    k_in: Annotated[int | None, typer.Option(help="Rows of V, with --k-out.")] = None,
    k_out: Annotated[int | None, typer.Option(help="Rows of U, with --k-in.")] = None,
    energy: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="As few rows a site as hold this share of its energy.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Bytes of a task's float16 cores, as 105KiB, spread where they hold most.")
    ] = None,
    k_max: Annotated[int | None, typer.Option(min=8, help="Most rows with --energy or --budget; 64.")] = None,
    base_rows: Annotated[int | None, typer.Option(min=1, help="For mixed: rows from the base; half.")] = None,
    weights: Annotated[
        Path | None, typer.Option(dir_okay=False, exists=True, help="JSON object of weights by adapter's name.")
    ] = None,
    one_per_seed_group: Annotated[
        bool, typer.Option("--one-per-seed-group", help="Of adapters that began alike, take one.")
    ] = False,
    sweeps: Annotated[int | None, typer.Option(min=0, help="Most alternations after the HOSVD; 8.")] = None,
    extend: Annotated[
        Path | None, typer.Option(dir_okay=False, exists=True, help="A basis whose rows stay and come first.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="For --kind random; 0.")] = None,
    base_name: Annotated[str | None, typer.Option(help="Name to note for the base model.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Make a basis: from the base model alone, at random, or from a fleet of adapters."""
    size = SizeOptions(k, k_in, k_out, energy, budget, k_max)
    check_output(output, *([] if extend is None else [extend]))
    set_threads(threads)
    if kind is not Kind.RANDOM:
        refuse(f"--kind {kind}", {"--seed": seed})
    if kind in (Kind.BASE_SVD, Kind.RANDOM):
        fleet_only = {"--base-rows": base_rows, "--weights": weights, "--sweeps": sweeps, "--extend": extend}
        refuse(f"--kind {kind}", {"DIR": adapters, "--one-per-seed-group": one_per_seed_group} | fleet_only)
        n_rows = size.k_alone(kind)
        base = _load(model, base_name)
        _tell(output, _without_fleet(base, BasisKind(kind), n_rows, seed or 0, output))
        return
    n_base_rows = _base_rows(kind, size, base_rows)
    folders = adapter_folders(adapters or [])
    if not folders:
        raise SetupError(f"--kind {kind} needs the folders of adapters to build from")
    base = _load(model, base_name)
    fleet = _open_fleet(base, folders, one_per_seed_group=one_per_seed_group)
    names = [adapter.name for adapter in fleet]
    n_sweeps = _SWEEPS if sweeps is None else sweeps
    recipe = FleetRecipe(size.row_size(), n_base_rows, n_sweeps, read_weights(weights, names) if weights else {})
    _tell(output, _from_fleet(base, fleet, recipe, extend, output))


@basis_app.command("readdress")
def basis_readdress(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Coefficient files.")],
    basis: Annotated[Path, typer.Option(dir_okay=False, help="A basis that extends theirs.")],
    output: Annotated[Path, typer.Option(file_okay=False, help="A folder to write them to, by their names.")],
) -> None:
    """Rewrite coefficient files for a basis that extends theirs; their outputs stay the same, bit by bit."""
    spec = read_basis_spec(basis)
    lineage = check_rows(basis, spec)
    check_folder(output)
    counts = Counter(file.name for file in files)
    clashes = [name for name, n in counts.items() if n > 1 or (output / name).exists()]
    if clashes:
        raise SetupError(f"{output / clashes[0]} would be written over; give another --output, or rename the file")
    written = {file.name: _readdressed(file, spec, lineage) for file in files}
    for name, result in written.items():
        write_whole(output / name, result.data)
        zeros = f", {result.n_zeros} zeros added" if result.n_zeros else ""
        size = "" if result.k is None else f", k={result.k}"
        say(f"{output / name}: {len(result.data)} bytes{size}{zeros}")


def _readdressed(file: Path, extended: BasisSpec, lineage: Sequence[Ancestor]) -> Readdressed:
    try:
        return readdress(file.read_bytes(), extended, lineage)
    except (CoefficientError, InvalidBasis) as error:
        raise InvalidFile(file, str(error)) from error


def _load(model: Path, name: str | None) -> LoadedBase:
    return load_base(model, dtype=torch.bfloat16, device=torch.device("cpu"), name=name)


def _base_rows(kind: Kind, size: SizeOptions, asked: int | None) -> int:
    if kind is Kind.FLEET:
        refuse("--kind fleet", {"--base-rows": asked})
        return 0
    rows = size.row_size()
    if not isinstance(rows, FixedSize):
        raise SetupError("--kind mixed needs its size as --k, or as --k-in and --k-out")
    smallest = min(rows.k_in, rows.k_out)
    n_rows = smallest // 2 if asked is None else asked
    if not 0 < n_rows < smallest:
        raise SetupError(
            f"--kind mixed: {n_rows} of {smallest} rows from the base; needs at least one from either side"
        )
    return n_rows


def _open_fleet(base: LoadedBase, folders: Sequence[Path], *, one_per_seed_group: bool) -> list[PeftAdapter]:
    shapes = site_shapes(base.model)
    with progress_bars() as progress:
        bar = progress.add_task("adapters", total=len(folders))
        fleet = []
        for folder in folders:
            fleet.append(open_adapter(folder, shapes))
            progress.advance(bar)
    groups = seed_groups(fleet)
    for group in groups:
        kept = f"only {group[0]} is used" if one_per_seed_group else "--one-per-seed-group would take one of them"
        complain(
            f"{len(group)} adapters began from one random A: {', '.join(group)}; they agree for that alone; {kept}"
        )
    return one_of_each(fleet, groups) if one_per_seed_group else fleet


def _without_fleet(base: LoadedBase, kind: BasisKind, k: int, seed: int, output: Path) -> BasisSpec:
    with progress_bars() as progress:
        bar = progress.add_task("sites", total=len(linear_sites(base.model)))
        return build_basis(base, kind=kind, k=k, seed=seed, path=output, progress=lambda _site: progress.advance(bar))


def _from_fleet(
    base: LoadedBase, fleet: Sequence[PeftAdapter], recipe: FleetRecipe, extend: Path | None, output: Path
) -> BasisSpec:
    old = None if extend is None else open_old_basis(extend, base)
    with progress_bars() as progress:
        bar = progress.add_task("sites", total=None)

        def on_progress(n_done: int, n_all: int) -> None:
            progress.update(bar, completed=n_done, total=n_all)

        return build_fleet_basis(base, fleet, recipe, path=output, old=old, progress=on_progress)


def _tell(path: Path, spec: BasisSpec) -> None:
    ins, outs = {site.k_in for site in spec.sites}, {site.k_out for site in spec.sites}
    k = f"k={min(ins)}" if len(ins | outs) == 1 else f"k_in={_span(ins)}, k_out={_span(outs)}"
    say(f"{path}: {spec.kind}, {len(spec.sites)} sites, {k}, {spec.size_bytes / 2**20:.1f} MiB, {spec.digest}")
    if "adapters" in spec.report:
        report = spec.report
        say(
            f"{len(report['adapters'])} adapters; held of their energy, in-sample: "
            f"{report['energy_held_in_sample']:.3f}; a task's cores: {2 * report['core_numbers']} bytes in float16"
        )


def _span(numbers: set[int]) -> str:
    return str(min(numbers)) if len(numbers) == 1 else f"{min(numbers)}-{max(numbers)}"
