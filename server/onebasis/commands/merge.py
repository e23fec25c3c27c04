"""`onebasis merge`: one coefficient file from several."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from onebasis.commands.console import BasisOption, ThreadsOption, progress_bars, say, set_threads
from onebasis.core.errors import InvalidMerge
from onebasis.core.ids import parse_task_name
from onebasis.fitting.data import TokenExample, read_examples
from onebasis.fitting.files import check_output
from onebasis.fitting.merging.grams import gather_grams
from onebasis.fitting.merging.job import Merged, ScoreRow, merge, score_merge, write_merged
from onebasis.fitting.merging.method import MergeMethod, MergeSettings, used_weights
from onebasis.fitting.merging.parts import MergePart, check_names, read_parts
from onebasis.fitting.merging.regmean import Grams
from onebasis.model.factors import Basis, checked_fingerprint, load_basis
from onebasis.model.loader import LoadedBase, load_base

Named = dict[str, list[TokenExample]]


def merge_command(
    files: Annotated[list[str], typer.Argument(help="Coefficient files, each FILE or FILE=WEIGHT.", metavar="FILE...")],
    basis: BasisOption,
    method: Annotated[MergeMethod, typer.Option(help="How to merge.")],
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.coef.safetensors file.")
    ],
    task: Annotated[
        str | None, typer.Option(help="Name of the merged task; by default its parts' names, joined with -.")
    ] = None,
    density: Annotated[float | None, typer.Option(help="ties, dare: share of numbers kept. [0.2; 0.5]")] = None,
    scale: Annotated[float | None, typer.Option("--lambda", help="ties, dare: factor of the result. [1]")] = None,
    seed: Annotated[int | None, typer.Option(help="dare: of the random choice. [0]")] = None,
    ridge: Annotated[float | None, typer.Option(help="regmean: pull towards the mean. [0.001]")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="regmean: NAME=FILE, JSON lines of the part called NAME; one for each.")
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, JSON lines to score on; for any of the parts.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the base model; needed with data.", envvar="ONEBASIS_MODEL")
    ] = None,
    max_example_tokens: Annotated[int, typer.Option(min=2)] = 512,
    threads: ThreadsOption = None,
) -> None:
    """Merge tasks of one basis into one, and print the simple mean beside the result."""
    settings = MergeSettings(method, density=density, scale=scale, seed=seed, ridge=ridge)
    given = [_path_and_weight(text) for text in files]
    check_output(output, basis, *(path for path, _ in given))
    set_threads(threads)
    loaded = load_basis(basis, dtype=torch.bfloat16, device=torch.device("cpu"))
    parts = read_parts(given, loaded.spec)
    check_names(parts)
    used_weights(method, parts)
    name = parse_task_name(task if task is not None else "-".join(part.name for part in parts))
    base = _base(model, loaded, needed=bool(data or validation))
    training = {} if base is None else _examples("--data", data, parts, base, max_example_tokens)
    held_out = {} if base is None else _examples("--validation", validation, parts, base, max_example_tokens)
    merged = merge(parts, settings, loaded.spec, _grams(base, loaded, parts, settings, training))
    scores: tuple[ScoreRow, ...] = ()
    if base is not None and held_out:
        with progress_bars() as progress:
            bar = progress.add_task("scores", total=4 * len(held_out))
            scores = score_merge(base, loaded, parts, merged, held_out, lambda: progress.advance(bar))
    digest = write_merged(output, merged, parts, settings, loaded.spec, task=name, scores=scores)
    _tell(method, merged, scores)
    say(f"{output}: task {name}, {method} of {len(parts)}, {output.stat().st_size} bytes, {digest}")


def _path_and_weight(text: str) -> tuple[Path, float | None]:
    """FILE=WEIGHT; a text whose end is no number is a path with a = in its name."""
    path, equals, weight = text.rpartition("=")
    try:
        return (Path(path), float(weight)) if equals else (Path(text), None)
    except ValueError:
        return Path(text), None


def _base(model: Path | None, basis: Basis, *, needed: bool) -> LoadedBase | None:
    if not needed:
        return None
    if model is None:
        raise InvalidMerge("--data and --validation need the base model: pass --model")
    base = load_base(model, dtype=torch.bfloat16, device=torch.device("cpu"))
    checked_fingerprint(base.model, basis)
    return base


def _examples(
    option: str, given: Sequence[str] | None, parts: Sequence[MergePart], base: LoadedBase, max_tokens: int
) -> Named:
    """NAME=FILE read and tokenised, by the name of the part."""
    names = [part.name for part in parts]
    found: Named = {}
    for text in given or ():
        name, equals, path = text.partition("=")
        if not equals or name not in names or name in found:
            raise InvalidMerge(f"{option} {text}: needs NAME=FILE, each name once, of {', '.join(names)}")
        found[name] = read_examples(Path(path), base.tokenizer, max_tokens=max_tokens)
    return found


def _grams(
    base: LoadedBase | None, basis: Basis, parts: Sequence[MergePart], settings: MergeSettings, training: Named
) -> list[Grams] | None:
    if settings.method is not MergeMethod.REGMEAN:
        if training:
            raise InvalidMerge(f"--data: {settings.method} needs none; leave it out, or use --validation to score")
        return None
    missing = [part.name for part in parts if part.name not in training]
    if base is None or missing:
        raise InvalidMerge(f"regmean needs --model and --data NAME=FILE for every part, {missing[0]!r} has no data")
    with progress_bars() as progress:
        bar = progress.add_task("data", total=sum(map(len, training.values())))
        return [
            gather_grams(base, basis, part.cores, training[part.name], lambda: progress.advance(bar)) for part in parts
        ]


def _tell(method: MergeMethod, merged: Merged, scores: Sequence[ScoreRow]) -> None:
    norms = Table("cores of", "norm", "distance to the mean")
    for row in merged.rows:
        norms.add_row(row.name, _number(row.norm), _number(row.distance_to_mean))
    Console().print(norms)
    if scores:
        columns = {"bare": "bare", "own": "own", "mean": "mean", str(method): "merged"}  # the mean itself comes once
        table = Table("exact match on", "n", *columns)
        for found in scores:
            table.add_row(found.part, str(found.n), *(f"{getattr(found, field):.2f}" for field in columns.values()))
        Console().print(table)
    if method.is_elementwise:
        say(f"{method} works number by number: in another basis, or on rotated rows of this one, it gives another task")


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else str(value)
