"""Coefficient files given to an offline command, whose work is on cores alone."""

from pathlib import Path
from typing import Final

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import BoundCoefficients, bind
from onebasis.core.errors import CoefficientError, InvalidFile

SUFFIX: Final = ".coef.safetensors"


def short_name(path: Path) -> str:
    """A coefficient file's name without what all of them end with."""
    return path.name.removesuffix(SUFFIX)


def read_cores(path: Path, basis: BasisSpec) -> BoundCoefficients:
    """A coefficient file that is nothing but cores, in any form.

    Raises:
        InvalidFile: it is no coefficient file, or not for this basis, with the reason that a server would give; or it
            has a residual, which would be lost.
        OSError: it can't be read.
    """
    try:
        bound = bind(parse_coefficients(path.read_bytes()), basis)
    except CoefficientError as error:
        raise InvalidFile(path, str(error)) from error
    if bound.residual:
        raise InvalidFile(path, "it has a residual beside its cores, which would be lost; give a file without one")
    return bound
