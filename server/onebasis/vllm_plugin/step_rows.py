"""Whose task each token of the running step is, as rows of the table of cores."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch


class StepRows:
    """Follows the requests of a worker, and writes each step's rows where the wrapped layers read them.

    Invariant: behind the last token of the step every row is the base's. The worker's thread only.

    Args:
        n_tokens: the most that a step can have, padding included.
        base_row: the row of zeros.
    """

    def __init__(self, n_tokens: int, *, base_row: int, device: torch.device) -> None:
        self.base_row = base_row
        self._row_of: dict[str, int] = {}  # request id -> row, of requests with a task
        self._n_written = 0
        self.rows = torch.full((n_tokens,), base_row, dtype=torch.int64, device=device)
        """[n_tokens] int64, at one address for good: a CUDA graph reads it."""
        self.n_task_tokens = 0
        """How many tokens of the step have a task."""

    def follow(self, begun: Iterable[tuple[str, int | None]], ended: Iterable[str]) -> None:
        """Note a step's news: requests that begin, with their row, and requests that have ended, which come first."""
        for request_id in ended:
            self._row_of.pop(request_id, None)
        for request_id, row in begun:
            if row is not None:
                self._row_of[request_id] = row

    def begin(self, request_ids: Sequence[str], n_tokens: Sequence[int]) -> None:
        """Write the rows of a step: each request's tokens, one request after the other."""
        own = [self._row_of.get(request_id, self.base_row) for request_id in request_ids]
        rows = np.repeat(np.array(own, dtype=np.int64), n_tokens)
        n_task_tokens = int(np.count_nonzero(rows != self.base_row))
        if n_task_tokens or self._n_written:
            self.rows[: len(rows)].copy_(torch.from_numpy(rows))
            self.rows[len(rows) : self._n_written] = self.base_row
        self._n_written = len(rows) if n_task_tokens else 0
        self.n_task_tokens = n_task_tokens
