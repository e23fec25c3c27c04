"""A merge from parts to the bytes of a coefficient file, with the simple mean measured beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onebasis import __version__
from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import write_coefficients
from onebasis.core.ids import Digest, digest_of
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, site_cores
from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import score
from onebasis.fitting.files import write_whole
from onebasis.fitting.merging.mean import mean
from onebasis.fitting.merging.method import MergeMethod, MergeSettings, merge_cores, used_weights
from onebasis.fitting.merging.parts import MergePart, check_names
from onebasis.fitting.merging.regmean import Grams
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase


@dataclass(frozen=True, slots=True)
class Merged:
    """Cores [n_core_numbers] float32 of the chosen method and of the simple mean, and how far they are apart."""

    cores: NDArray[np.float32]
    mean: NDArray[np.float32]
    rows: tuple["NormRow", ...]


@dataclass(frozen=True, slots=True)
class NormRow:
    """Frobenius norm of some cores, and of their difference from the mean's."""

    name: str
    norm: float
    distance_to_mean: float


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Exact match on one part's validation items, by who answers them."""

    part: str
    n: int
    bare: float
    own: float
    mean: float
    merged: float


def merge(
    parts: Sequence[MergePart], settings: MergeSettings, basis: BasisSpec, grams: Sequence[Grams] | None = None
) -> Merged:
    """Merge, and measure the result, the simple mean and every part against the mean.

    Raises:
        InvalidMerge: from `check_names` and `merge_cores`.
    """
    check_names(parts)
    merged = merge_cores(parts, settings, basis, grams)
    average = mean([part.cores for part in parts])
    named = [("mean", average), *((part.name, part.cores) for part in parts)]
    if settings.method is not MergeMethod.MEAN:
        named.insert(0, (str(settings.method), merged))
    rows = tuple(NormRow(name, _norm(cores), _norm(cores.astype(np.float64) - average)) for name, cores in named)
    return Merged(merged, average, rows)


def score_merge(
    base: LoadedBase,
    basis: Basis,
    parts: Sequence[MergePart],
    merged: Merged,
    validation: Mapping[str, Sequence[TokenExample]],
    on_score: Callable[[], None],
) -> tuple[ScoreRow, ...]:
    """Exact match of the bare model, the part itself, the mean and the merge, on the items of each part named."""
    rows = []
    for part in parts:
        examples = validation.get(part.name)
        if examples is None:
            continue
        found = [score(base, examples)]
        on_score()
        for cores in (part.cores, merged.mean, merged.cores):
            with applied_updates(base, core_updates(basis, site_cores(cores, basis.spec))):
                found.append(score(base, examples))
            on_score()
        rows.append(ScoreRow(part.name, len(examples), *found))
    return tuple(rows)


def write_merged(
    path: Path,
    merged: Merged,
    parts: Sequence[MergePart],
    settings: MergeSettings,
    basis: BasisSpec,
    *,
    task: str,
    scores: Sequence[ScoreRow] = (),
) -> Digest:
    """Write an ordinary coefficient file: full cores in float32, its provenance says what was merged and how."""
    weights = used_weights(settings.method, parts)
    provenance: dict[str, Any] = {
        "tool": f"onebasis {__version__}",
        "merge": {
            "method": str(settings.method),
            "options": settings.options(),
            "parts": [
                {"task": part.name, "digest": part.digest, "weight": weight}
                for part, weight in zip(parts, weights, strict=True)
            ],
        },
        "norms": [asdict(row) for row in merged.rows],
        "scores": [asdict(row) | {"metric": "exact_match"} for row in scores],
    }
    data = write_coefficients(
        merged.cores,
        form="core",
        basis=basis.digest,
        base_fingerprint=basis.base_fingerprint,
        task=task,
        provenance=provenance,
    )
    write_whole(path, data)
    return digest_of(data)


def _norm(cores: NDArray[np.floating[Any]]) -> float:
    return float(np.linalg.norm(cores.astype(np.float64)))
