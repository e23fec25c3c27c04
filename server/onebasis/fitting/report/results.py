"""What a report says: numbers and names alone. No torch, so that a page can be made from it anywhere.

Energy is the squared Frobenius norm of an update, its scale included, nothing centred; shares are of it. A share is
in-sample when the basis was made from the very adapter; such a number says nothing about a new one.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BasisSummary:
    """The basis of the report. k_in, k_out: smallest and largest of any site."""

    digest: str
    kind: str
    base_model: str
    size_bytes: int
    n_sites: int
    k_in: tuple[int, int]
    k_out: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Angles:
    """Smallest principal angle between an adapter's directions at a site and the basis's rows, over its sites.

    median, null_median: in degrees; the null's is between the rows and random directions of the same number.
    share_beyond_null: of the sites, how many have a smaller angle than 95 % of random directions; 0.05 means nothing.
    """

    median: float
    null_median: float
    share_beyond_null: float


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What is kept of one adapter over all of its sites that the basis has.

    outside: share of its energy at sites that the basis has not, which no other number of the report counts.
    in_sample: the basis was made from it. held: share of its energy that the first k rows of the basis hold, for
    each k of the report's prefixes. left_out: the same for a basis made anew from the other adapters; None if not
    measured.
    """

    name: str
    digest: str
    in_sample: bool
    n_sites: int
    largest_rank: int
    norm: float
    outside: float
    held: tuple[float, ...]
    left_out: tuple[float, ...] | None
    angles_in: Angles
    angles_out: Angles


@dataclass(frozen=True, slots=True)
class SiteWeights:
    """One site. Shares are means over the adapters that have it.

    in_sample, held_out: held by this basis of the adapters that it was made from, and of the others; None without
    any. left_out: held by a basis made anew without the adapter; None if not measured.
    spectrum_out, spectrum_in: share of energy inside of the n best directions of either side for all adapters together
    (each weighs the same), for each n of the report's spectrum_rows; in-sample by nature. null_out, null_in: the same
    of random adapters.
    """

    site: str
    d_in: int
    d_out: int
    k_in: int
    k_out: int
    n_adapters: int
    in_sample: float | None
    held_out: float | None
    left_out: float | None
    spectrum_out: tuple[float, ...]
    spectrum_in: tuple[float, ...]
    null_out: tuple[float, ...]
    null_in: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NullRow:
    """Share of energy held by k rows a side, mean over sites and adapters; random adapters have the same strengths.

    in_sample, held_out: by the report's basis, of the adapters that it was made from, and of the others; None without
    any. refitted: made anew from all the adapters, so in-sample for each. left_out: made anew
    without the adapter. null_in_sample: made from the random adapters. null_new: of a random adapter that is new.
    """

    k: int
    in_sample: float | None
    held_out: float | None
    refitted: float
    left_out: float | None
    null_in_sample: float
    null_new: float


@dataclass(frozen=True, slots=True)
class BytesPoint:
    """Mean share of an adapter's energy that a way keeps, and the task's own bytes in float16.

    in_sample: the mean is of adapters that the way's basis was made from; None where no basis takes part.
    """

    way: str
    size_bytes: int
    kept: float
    in_sample: bool | None


@dataclass(frozen=True, slots=True)
class WeightReport:
    """Everything that follows from weights alone. refit: how bases were made anew."""

    prefixes: tuple[int, ...]
    spectrum_rows: tuple[int, ...]
    refit: str
    adapters: tuple[AdapterWeights, ...]
    sites: tuple[SiteWeights, ...]
    null: tuple[NullRow, ...]
    bytes_and_energy: tuple[BytesPoint, ...]
    seed_groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class WayScore:
    """One way to answer a task, on its items.

    size_bytes: of the task's own numbers; None where there are none. in_sample: the way's basis was made from the
    original adapter; None where no basis takes part. loss: mean over answer tokens, in nats. kl, agreement: of the
    next token's distribution with the original adapter's, on its own greedy answers; None without an adapter.
    """

    way: str
    size_bytes: int | None
    in_sample: bool | None
    exact_match: float
    loss: float
    kl: float | None
    agreement: float | None


@dataclass(frozen=True, slots=True)
class TaskScores:
    """One task's items under every way."""

    task: str
    n_items: int
    ways: tuple[WayScore, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report. weights: None without adapters. tasks: empty without data."""

    tool: str
    basis: BasisSummary
    weights: WeightReport | None
    tasks: tuple[TaskScores, ...]
