"""The tasks that go into a merge, read from their files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.errors import InvalidMerge
from onebasis.core.ids import Digest
from onebasis.fitting.coefficient_files import read_cores, short_name

MAX_PARTS: Final = 200
"""What a provenance has room for."""


@dataclass(frozen=True, slots=True)
class MergePart:
    """One task of a merge: its flat cores [n_core_numbers] float32, and its weight if one was given."""

    name: str
    digest: Digest
    cores: NDArray[np.float32]
    weight: float | None = None


def read_parts(files: Sequence[tuple[Path, float | None]], basis: BasisSpec) -> list[MergePart]:
    """Coefficient files with their weights.

    A part is named as its file names the task; as the file is called where it names none, or others name the same.

    Raises:
        InvalidMerge: there are more than MAX_PARTS.
        InvalidFile: as `read_cores` does.
    """
    if len(files) > MAX_PARTS:
        raise InvalidMerge(f"{len(files)} files: at most {MAX_PARTS} can be merged, as the result notes each of them")
    bound = [read_cores(path, basis) for path, _ in files]
    counts = Counter(one.file.task for one in bound)
    return [
        MergePart(
            one.file.task if one.file.task and counts[one.file.task] == 1 else short_name(path),
            one.digest,
            one.flat_cores(),
            weight,
        )
        for one, (path, weight) in zip(bound, files, strict=True)
    ]


def check_names(parts: Sequence[MergePart]) -> None:
    """Raises InvalidMerge: there are fewer than two parts, or two of one name."""
    if len(parts) < 2:
        raise InvalidMerge(f"{len(parts)} file: a merge needs at least two")
    twice = sorted(name for name, n in Counter(part.name for part in parts).items() if n > 1)
    if twice:
        raise InvalidMerge(f"two parts are called {twice[0]!r}; give each file once, or rename one of them")
