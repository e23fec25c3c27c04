"""`onebasis inspect`: what is in a file, and whether a server would take it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Column, Table

from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.commands.console import complain
from onebasis.core.ids import parse_digest
from onebasis.fitting.inspection.inspect import Inspection, inspect_file

_MOST_SHOWN: Final = 12  # entries of a list or table within one line


def inspect_command(
    files: Annotated[
        list[Path],
        typer.Argument(exists=True, dir_okay=False, help="Basis, coefficients or backup.", metavar="FILE..."),
    ],
    basis: Annotated[
        Path | None, typer.Option(help="Basis file that coefficients have to fit.", envvar="ONEBASIS_BASIS")
    ] = None,
    digest: Annotated[str | None, typer.Option(help="The digest that the one file should have.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a file.")] = False,
) -> None:
    """Show what is in files and check them as a server does; exit code 1 when one does not fit."""
    if digest is not None and len(files) > 1:
        raise typer.BadParameter(f"{len(files)} files can't have one digest; give one file", param_hint="'--digest'")
    expected = None if digest is None else parse_digest(digest)
    spec = None if basis is None else read_basis_spec(basis)
    found = [inspect_file(path, basis=spec, expected=expected) for path in files]
    if as_json:
        typer.echo(json.dumps([_object(inspection) for inspection in found], indent=2))
    else:
        for inspection in found:
            Console().print(_table(inspection, has_basis=spec is not None))
    for inspection in found:
        for problem in inspection.problems:
            complain(problem if str(inspection.path) in problem else f"{inspection.path}: {problem}")
    if any(inspection.problems for inspection in found):
        raise typer.Exit(1)


def _object(inspection: Inspection) -> dict[str, Any]:
    return {
        "path": str(inspection.path),
        "kind": inspection.kind,
        "digest": inspection.digest,
        "size_bytes": inspection.size_bytes,
        "problems": list(inspection.problems),
        "facts": None if inspection.facts is None else asdict(inspection.facts),
    }


def _table(inspection: Inspection, *, has_basis: bool) -> Table:
    table = Table(Column(str(inspection.path), overflow="fold"), Column(inspection.kind, overflow="fold"))
    table.add_row("digest", inspection.digest)
    table.add_row("size", f"{inspection.size_bytes} bytes")
    if inspection.facts is not None:
        for name, value in _lines(asdict(inspection.facts)):
            table.add_row(name.replace("_", " "), value)
    well = "fits the basis" if has_basis else "well-formed; whether it fits a basis was not asked (--basis)"
    table.add_row("verdict", "does not fit, see below" if inspection.problems else well)
    return table


def _lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One line a fact; a table of facts has one line for each of its own."""
    for name, value in facts.items():
        match value:
            case None:
                continue
            case {"site": site, "norm": norm}:
                yield name, f"{site}, norm {norm:.4g}"
            case dict():
                yield from ((f"{name}: {inner}", _text(part)) for inner, part in value.items())
            case _:
                yield name, _text(value)


def _text(value: object) -> str:
    match value:
        case float():
            return f"{value:.4g}"
        case str():
            return value
        case list() | tuple() if len(value) <= _MOST_SHOWN:
            return ", ".join(map(_text, value))
        case list() | tuple() | dict() if len(value) > _MOST_SHOWN:
            return f"{len(value)} entries, shown by --json"
        case _:
            return json.dumps(value)
