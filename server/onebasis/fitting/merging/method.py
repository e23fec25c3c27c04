"""The methods of merging, what can be set for each, and the one call that merges."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.weighted_sum import weighted_sum
from onebasis.core.errors import InvalidMerge
from onebasis.fitting.merging.dare import dare
from onebasis.fitting.merging.mean import mean
from onebasis.fitting.merging.parts import MergePart
from onebasis.fitting.merging.regmean import Grams, regmean
from onebasis.fitting.merging.ties import ties


class MergeMethod(StrEnum):
    """weighted-sum, mean and regmean do not depend on the rows chosen to span the basis; ties and dare do."""

    WEIGHTED_SUM = "weighted-sum"
    MEAN = "mean"
    TIES = "ties"
    DARE = "dare"
    REGMEAN = "regmean"

    @property
    def is_elementwise(self) -> bool:
        return self in (MergeMethod.TIES, MergeMethod.DARE)


_OPTIONS: Mapping[MergeMethod, Mapping[str, float | int]] = {
    MergeMethod.WEIGHTED_SUM: {},
    MergeMethod.MEAN: {},
    MergeMethod.TIES: {"density": 0.2, "lambda": 1.0},  # the paper's density
    MergeMethod.DARE: {"density": 0.5, "lambda": 1.0, "seed": 0},
    MergeMethod.REGMEAN: {"ridge": 1e-3},
}
_WITHOUT_WEIGHTS = (MergeMethod.MEAN, MergeMethod.REGMEAN)


@dataclass(frozen=True, slots=True)
class MergeSettings:
    """A method with its options, as far as they were chosen; `options()` has the preset of the others.

    density: share of the numbers that ties and dare keep. scale: the lambda of ties and dare. seed: of dare.
    ridge: of regmean.

    Raises:
        InvalidMerge: an option that the method does not have, or out of its range.
    """

    method: MergeMethod
    density: float | None = None
    scale: float | None = None
    seed: int | None = None
    ridge: float | None = None

    def __post_init__(self) -> None:
        strange = sorted(self._chosen().keys() - _OPTIONS[self.method].keys())
        if strange:
            allowed = ", ".join(f"--{name}" for name in _OPTIONS[self.method]) or "no option"
            raise InvalidMerge(f"--{strange[0]}: {self.method} has {allowed}; leave it out")
        if self.density is not None and not 0 < self.density <= 1:
            raise InvalidMerge(f"--density {self.density}: needs a share above 0 and at most 1")
        if self.scale is not None and not math.isfinite(self.scale):
            raise InvalidMerge(f"--lambda {self.scale}: needs a finite number")
        if self.ridge is not None and not 0 < self.ridge < math.inf:
            raise InvalidMerge(f"--ridge {self.ridge}: needs a finite number above 0")
        if self.seed is not None and self.seed < 0:
            raise InvalidMerge(f"--seed {self.seed}: needs a whole number from 0")

    def options(self) -> dict[str, float | int]:
        """Every option of the method, by its name on the command line."""
        return dict(_OPTIONS[self.method]) | self._chosen()

    def _chosen(self) -> dict[str, float | int]:
        fields = asdict(self)
        named = {"lambda" if name == "scale" else name: fields[name] for name in fields if name != "method"}
        return {name: value for name, value in named.items() if value is not None}


def used_weights(method: MergeMethod, parts: Sequence[MergePart]) -> tuple[float, ...]:
    """The weight of every part under the method.

    weighted-sum needs one for each part; ties and dare take 1 where none was given, and only ratios count; mean and
    regmean weigh all alike: 1 / n, and by what the data say.

    Raises:
        InvalidMerge: a weight that is missing, not wanted, or not allowed.
    """
    given = [part for part in parts if part.weight is not None]
    if method in _WITHOUT_WEIGHTS:
        if given:
            raise InvalidMerge(f"{method} takes no weights, {given[0].name!r} has one; use weighted-sum, ties or dare")
        return (1.0 / len(parts),) * len(parts)
    if method is MergeMethod.WEIGHTED_SUM and len(given) < len(parts):
        first = next(part.name for part in parts if part.weight is None)
        raise InvalidMerge(f"weighted-sum needs FILE=WEIGHT for every part, {first!r} has no weight; or use mean")
    weights = tuple(1.0 if part.weight is None else part.weight for part in parts)
    if not all(map(math.isfinite, weights)):
        raise InvalidMerge(f"weights {weights}: needs finite numbers")
    if method.is_elementwise and min(weights) <= 0:
        raise InvalidMerge(f"weights {weights}: {method} needs numbers above 0; only their ratios count")
    return weights


@np.errstate(over="ignore", invalid="ignore")  # a result too large is found, and said in our own words
def merge_cores(
    parts: Sequence[MergePart], settings: MergeSettings, basis: BasisSpec, grams: Sequence[Grams] | None
) -> NDArray[np.float32]:
    """[n_core_numbers] the merge of the parts.

    Args:
        grams: of each part, in the parts' order; regmean alone needs them.

    Raises:
        InvalidMerge: a weight that the method does not allow, or a result too large for float32.
    """
    cores = [part.cores for part in parts]
    weights = used_weights(settings.method, parts)
    options = settings.options()
    match settings.method:
        case MergeMethod.WEIGHTED_SUM:
            merged = weighted_sum(cores, weights)
        case MergeMethod.MEAN:
            merged = mean(cores)
        case MergeMethod.TIES:
            merged = ties(cores, weights, density=options["density"], scale=options["lambda"])
        case MergeMethod.DARE:
            seed = int(options["seed"])
            merged = dare(cores, weights, density=options["density"], scale=options["lambda"], seed=seed)
        case MergeMethod.REGMEAN:
            if grams is None:
                raise InvalidMerge("regmean needs data of every part: --data NAME=FILE and --model")
            merged = regmean(cores, grams, basis.sites, ridge=options["ridge"])
    if not np.isfinite(merged).all():
        raise InvalidMerge("the merge is too large for float32; lower the weights or --lambda")
    return merged
