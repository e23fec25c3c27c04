"""What is in the backup of a registry."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from onebasis.coefficients.backup import reading_backup
from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.tables import FILES, VERSIONS
from onebasis.coefficients.validate import bind
from onebasis.core.errors import CoefficientError
from onebasis.core.ids import TaskKey, digest_of


@dataclass(frozen=True, slots=True)
class BackupFacts:
    """tasks: names (`tenant/name` for a tenant's own) with the digest of the newest version; no deleted ones.

    n_versions: includes deletions. bases: how many files there are for each basis.
    """

    tasks: Mapping[str, str]
    n_versions: int
    n_files: int
    bases: Mapping[str, int]


def inspect_backup(path: Path, basis: BasisSpec | None) -> tuple[BackupFacts, list[str]]:
    """The facts, and every file that is damaged or that a server with this basis could not use.

    Raises:
        InvalidBackup: it is no backup.
    """
    problems: list[str] = []
    bases: dict[str, int] = {}
    n_files = 0
    with reading_backup(path) as backup:
        for digest, body in backup.execute(select(FILES.c.digest, FILES.c.body)):
            n_files += 1
            if digest_of(bytes(body)) != digest:
                problems.append(f"the bytes of {digest} are damaged")
                continue
            try:
                file = parse_coefficients(bytes(body))
                bases[file.basis] = bases.get(file.basis, 0) + 1
                if basis is not None:
                    bind(file, basis)
            except CoefficientError as error:
                problems.append(f"{digest}: {error}")
        rows = backup.execute(
            select(VERSIONS.c.owner, VERSIONS.c.name, VERSIONS.c.digest).order_by(VERSIONS.c.generation)
        ).all()
    newest = {TaskKey(owner, name): digest for owner, name, digest in rows}
    tasks = {_shown(key): newest[key] for key in sorted(newest) if newest[key] is not None}
    return BackupFacts(tasks, len(rows), n_files, bases), problems


def _shown(key: TaskKey) -> str:
    return f"{key.owner}/{key.name}" if key.owner else key.name
