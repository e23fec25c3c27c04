"""What a writer demands of a task's current version. The store checks it inside its transaction."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from onebasis.core.errors import PreconditionFailed
from onebasis.core.ids import Digest

ANY: Final = "*"
"""Stands for every version there may be."""


@dataclass(frozen=True, slots=True)
class Precondition:
    """As of RFC 9110: `if_match` holds digests of which the task must stand at one, `if_none_match` digests at none
    of which it may stand. ANY in the first: it must exist; in the second: it must not. None demands nothing.
    """

    if_match: Collection[str] | None = None
    if_none_match: Collection[str] | None = None

    def check(self, current: Digest | None) -> None:
        """Raise PreconditionFailed unless `current` (None: no such task) is what was demanded."""
        if self.if_match is not None and not names(self.if_match, current):
            raise PreconditionFailed(required=_told(self.if_match, "a task of that name"), found=current)
        if self.if_none_match is not None and names(self.if_none_match, current):
            required = _told(self.if_none_match, "no task of that name")
            raise PreconditionFailed(
                required=required if ANY in self.if_none_match else f"not {required}", found=current
            )


NO_PRECONDITION: Final = Precondition()


def names(wanted: Collection[str], current: Digest | None) -> bool:
    """Is the current version among the wanted ones?"""
    return current is not None and (ANY in wanted or current in wanted)


def _told(wanted: Collection[str], anything: str) -> str:
    return anything if ANY in wanted else " or ".join(sorted(wanted)[:3]) or "nothing that is named"
