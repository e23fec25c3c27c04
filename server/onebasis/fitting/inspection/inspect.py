"""Look at any file of ours: basis, coefficients, or the backup of a registry."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from onebasis.coefficients.basis_file import BASIS_FORMAT, BasisSpec
from onebasis.coefficients.container import read_header
from onebasis.coefficients.format import COEFFICIENTS_FORMAT
from onebasis.core.errors import ServeError
from onebasis.core.ids import Digest, digest_of_file
from onebasis.fitting.inspection.backup import BackupFacts, inspect_backup
from onebasis.fitting.inspection.basis import BasisFacts, inspect_basis
from onebasis.fitting.inspection.coefficients import CoefficientFacts, inspect_coefficients

Kind = Literal["basis", "coefficients", "backup", "unknown"]
_SQLITE: Final = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found. `facts` is None when the file can't be read so far; `problems` is empty when all is well."""

    path: Path
    kind: Kind
    digest: Digest
    size_bytes: int
    facts: BasisFacts | CoefficientFacts | BackupFacts | None
    problems: tuple[str, ...]


def inspect_file(path: Path, *, basis: BasisSpec | None = None, expected: Digest | None = None) -> Inspection:
    """Read a file whole and check it as a server does.

    Args:
        basis: that coefficients, alone or in a backup, have to fit; a basis file has to be this one.
        expected: the digest that the file should have.

    Raises:
        OSError: the file can't be read. Whatever is wrong with its content is in `problems`, in a server's words.
    """
    digest = digest_of_file(path)
    problems = [] if expected in (None, digest) else [f"its digest is {digest}, expected was {expected}"]
    facts: BasisFacts | CoefficientFacts | BackupFacts | None = None
    kind: Kind = "unknown"
    try:
        kind = _kind(path)
        if kind == "backup":
            facts, found = inspect_backup(path, basis)
        elif kind == "basis":
            facts, found = inspect_basis(path, basis)
        else:
            facts, found = inspect_coefficients(path, basis)
        problems += found
    except ServeError as error:
        problems.append(str(error))
    return Inspection(path, kind, digest, path.stat().st_size, facts, tuple(problems))


def _kind(path: Path) -> Kind:
    """By the file's own words, not by its name; a container of another format is refused as coefficients are."""
    with path.open("rb") as file:
        if file.read(len(_SQLITE)) == _SQLITE:
            return "backup"
    found = read_header(path).metadata.get("format")
    kinds: dict[str | None, Kind] = {BASIS_FORMAT: "basis", COEFFICIENTS_FORMAT: "coefficients"}
    return kinds.get(found, "unknown")
