"""Sampling in which a bad row is its own trouble only."""

from collections.abc import Sequence
from math import isfinite

from torch import Tensor

from onebasis.core.errors import NonFiniteOutput
from onebasis.engine.sampler import Sampled, SampleRow, sample


def sample_isolated(logits: Tensor, rows: Sequence[SampleRow], best: Tensor) -> list[Sampled | Exception]:
    """One token per row, or what is wrong with that row. The other rows get what they would have got without it.

    Args:
        logits: [n_rows, n_vocab], any float dtype.
        rows: one for each row of logits.
        best: [n_rows] int64, `logits.argmax(dim=-1)`, for which the first NaN is the highest number.

    A row whose logits hold NaN or +inf, or nothing but -inf, gives NonFiniteOutput. When `sample` raises, each row is
    sampled alone: a draw depends on its own row, so this changes no token.
    """
    if not rows:
        return []
    highest: list[float] = logits.gather(1, best.unsqueeze(1)).flatten().tolist()
    results: list[Sampled | Exception]
    try:
        results = list(sample(logits, rows, best))
    except Exception:
        results = [_sample_alone(logits[i : i + 1], row) for i, row in enumerate(rows)]
    return [result if isfinite(top) else NonFiniteOutput() for result, top in zip(results, highest, strict=True)]


def _sample_alone(logits: Tensor, row: SampleRow) -> Sampled | Exception:
    try:
        return sample(logits, [row])[0]
    except Exception as error:
        return error
