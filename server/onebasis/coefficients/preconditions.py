"""What a writer demands of a task's current version. The store checks it inside its transaction."""

from dataclasses import dataclass

from onebasis.core.errors import PreconditionFailed
from onebasis.core.ids import Digest


@dataclass(frozen=True, slots=True)
class Precondition:
    """`if_match`: the task stands at this digest. `if_none_match`: no task of that name (`If-None-Match: *`)."""

    if_match: Digest | None = None
    if_none_match: bool = False

    def check(self, current: Digest | None) -> None:
        """Raise PreconditionFailed unless `current` (None: no such task) is what was demanded."""
        if self.if_none_match and current is not None:
            raise PreconditionFailed(required="no task of that name", found=current)
        if self.if_match is not None and self.if_match != current:
            raise PreconditionFailed(required=self.if_match, found=current)
