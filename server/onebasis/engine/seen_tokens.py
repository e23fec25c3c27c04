"""The distinct tokens of a sequence, for the repetition penalty. No torch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class SeenTokens:
    """Grows with its sequence, so that no step has to go through the whole prompt again.

    Invariant: the first `len(_known)` numbers of `_room` are the tokens of `_known`.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        self._known = set(token_ids)
        self._room = np.fromiter(self._known, dtype=np.int64, count=len(self._known))

    @property
    def ids(self) -> NDArray[np.int64]:
        """[n_distinct], in any order; a view, valid until the next `add`."""
        return self._room[: len(self._known)]

    def add(self, token_id: int) -> None:
        """Take one more token of the sequence. O(1), amortised."""
        if token_id in self._known:
            return
        n = len(self._known)
        if n == len(self._room):
            self._room = np.concatenate([self._room, np.zeros(n + 64, dtype=np.int64)])
        self._room[n] = token_id
        self._known.add(token_id)
