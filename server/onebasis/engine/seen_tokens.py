"""The distinct tokens of a sequence and how often it generated each, for the penalties. No torch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class SeenTokens:
    """Grows with its sequence, so that no step has to go through prompt and output again.

    Invariant: `_place` gives every distinct token its column of `_room`: [token, times in the output].
    """

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        self._place = {token_id: place for place, token_id in enumerate(dict.fromkeys(prompt_ids))}
        self._room = np.zeros((2, len(self._place)), dtype=np.int64)
        self._room[0] = list(self._place)

    @property
    def ids(self) -> NDArray[np.int64]:
        """[n_distinct] of prompt and output, in any order; a view, valid until the next `add`."""
        return self._room[0, : len(self._place)]

    @property
    def n_generated(self) -> NDArray[np.int64]:
        """[n_distinct] how often the output has each of `ids`: 0 for one of the prompt alone. A view as `ids` is."""
        return self._room[1, : len(self._place)]

    def add(self, token_id: int) -> None:
        """Take one more token of the output. O(1), amortised."""
        place = self._place.setdefault(token_id, len(self._place))
        if place == self._room.shape[1]:
            self._room = np.concatenate([self._room, np.zeros((2, place + 64), dtype=np.int64)], axis=1)
        self._room[0, place] = token_id
        self._room[1, place] += 1
