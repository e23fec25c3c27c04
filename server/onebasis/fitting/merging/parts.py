"""The tasks that go into a merge, read from their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.errors import InvalidMerge
from onebasis.core.ids import Digest
from onebasis.fitting.coefficient_files import read_cores

_SUFFIX = ".coef.safetensors"


@dataclass(frozen=True, slots=True)
class MergePart:
    """One task of a merge: its flat cores [n_core_numbers] float32, and its weight if one was given."""

    name: str
    digest: Digest
    cores: NDArray[np.float32]
    weight: float | None = None


def read_part(path: Path, basis: BasisSpec, *, weight: float | None = None) -> MergePart:
    """A coefficient file, named as it names its task, or as the file is called. Raises what `read_cores` does."""
    bound = read_cores(path, basis)
    name = bound.file.task or path.name.removesuffix(_SUFFIX)
    return MergePart(name, bound.digest, bound.flat_cores(), weight)


def check_names(parts: Sequence[MergePart]) -> None:
    """Raises InvalidMerge: there are fewer than two parts, or two of one name."""
    names = [part.name for part in parts]
    if len(names) < 2:
        raise InvalidMerge(f"{len(names)} file: a merge needs at least two")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidMerge(f"two files are of the task {twice[0]!r}; merge versions of one task after renaming one")
