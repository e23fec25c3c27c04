"""What the options of `onebasis basis build` ask for, and which of them do not go together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from onebasis.core.errors import SetupError
from onebasis.fitting.basis.sizes import ByteBudget, EnergyShare, FixedSize

_DEFAULT_K: Final = 16
_DEFAULT_K_MAX: Final = 64
_UNITS: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2}


class Kind(StrEnum):
    """Where the directions come from.

    base-svd, random: see BasisKind. fleet: what adapters have in common. mixed: fleet, and base-svd beside it.
    """

    BASE_SVD = "base-svd"
    RANDOM = "random"
    FLEET = "fleet"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class SizeOptions:
    """Options of which one way to say a size may be given; None where one was not."""

    k: int | None
    k_in: int | None
    k_out: int | None
    energy: float | None
    budget: str | None
    k_max: int | None

    def k_alone(self, kind: Kind) -> int:
        """For kinds that have one k for all.

        Raises:
            SetupError: the size was given in another way.
        """
        others = {"--k-in": self.k_in, "--k-out": self.k_out, "--energy": self.energy, "--budget": self.budget}
        refuse(f"--kind {kind}", others | {"--k-max": self.k_max})
        return _DEFAULT_K if self.k is None else self.k

    def row_size(self) -> FixedSize | EnergyShare | ByteBudget:
        """Raises SetupError when the size was given twice, or halfway."""
        ways = {
            "--k": self.k is not None,
            "--k-in and --k-out": self.k_in is not None or self.k_out is not None,
            "--energy": self.energy is not None,
            "--budget": self.budget is not None,
        }
        given = [way for way, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise SetupError(f"{' and '.join(given)} each say how many rows a site gets; give one of them")
        if (self.k_in is None) != (self.k_out is None):
            raise SetupError("--k-in and --k-out go together; --k sets both")
        k_max = _DEFAULT_K_MAX if self.k_max is None else self.k_max
        if self.energy is not None:
            return EnergyShare(self.energy, k_max)
        if self.budget is not None:
            return ByteBudget(parse_bytes(self.budget), k_max)
        refuse("a number of rows", {"--k-max": self.k_max})
        if self.k_in is not None and self.k_out is not None:
            return FixedSize(self.k_out, self.k_in)
        k = _DEFAULT_K if self.k is None else self.k
        return FixedSize(k, k)


def refuse(why: str, options: Mapping[str, Any]) -> None:
    """Raise SetupError for an option that was given although it has no meaning here."""
    given = [name for name, value in options.items() if not (value is None or value is False or value == [])]
    if given:
        raise SetupError(f"{given[0]} does not go with {why}; leave it out")


def parse_bytes(text: str) -> int:
    """`105KiB`, `1.5MiB` or `4096`. Raises SetupError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB)?", text)
    if match is None:
        raise SetupError(f"--budget {text}: needs a number of bytes such as 105KiB, 1.5MiB or 4096")
    return int(float(match[1]) * _UNITS[match[2] or "B"])
