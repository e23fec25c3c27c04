"""Sampling in which a bad row is its own trouble only."""

from collections.abc import Sequence

from torch import Tensor

from onebasis.core.errors import NonFiniteOutput
from onebasis.engine.sampler import Sampled, SampleRow, sample


def sample_isolated(logits: Tensor, rows: Sequence[SampleRow]) -> list[Sampled | Exception]:
    """One token per row, or what is wrong with that row. The other rows get what they would have got without it.

    Args:
        logits: [n_rows, n_vocab], any float dtype.
        rows: one for each row of logits.

    A row whose logits hold NaN or +inf, or nothing but -inf, gives NonFiniteOutput. When `sample` raises, each row is
    sampled alone: a draw depends on its own row, so this changes no token.
    """
    if not rows:
        return []
    best = logits.argmax(dim=-1)  # of NaN the first is the best
    are_finite = logits.gather(1, best.unsqueeze(1)).squeeze(1).isfinite().tolist()
    results: list[Sampled | Exception]
    try:
        results = list(sample(logits, rows, best))
    except Exception:
        results = [_sample_alone(logits[i : i + 1], row) for i, row in enumerate(rows)]
    return [result if ok else NonFiniteOutput() for result, ok in zip(results, are_finite, strict=True)]


def _sample_alone(logits: Tensor, row: SampleRow) -> Sampled | Exception:
    try:
        return sample(logits, [row])[0]
    except Exception as error:
        return error
