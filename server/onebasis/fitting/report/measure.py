"""A whole report from a base, a basis, adapters, tasks and data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onebasis import __version__
from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.errors import InvalidReport
from onebasis.fitting.low_rank import ReadAdapter
from onebasis.fitting.report.functional import Subject, check_length, n_ways, score_subject
from onebasis.fitting.report.results import BasisSummary, Report, TaskScores
from onebasis.fitting.report.weights import measure_weights
from onebasis.model.factors import Basis, checked_fingerprint
from onebasis.model.loader import LoadedBase


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """leave_one_out: make bases anew without each adapter. n_sweeps: of their alternation. seed: of null and random."""

    leave_one_out: bool = True
    n_sweeps: int = 1
    seed: int = 0


def measure_report(
    base: LoadedBase,
    basis: Basis,
    adapters: Sequence[ReadAdapter],
    subjects: Sequence[Subject],
    settings: ReportSettings,
    *,
    on_site: Callable[[], None],
    on_way: Callable[[], None],
) -> Report:
    """Measure everything: weights if there are adapters, functions if there are subjects.

    Raises:
        InvalidReport: there is neither; from `check_length`, or from `measure_weights`.
        InvalidBasis: the basis was made for other base weights.
    """
    if not adapters and not subjects:
        raise InvalidReport("nothing to measure; give adapters, or --tasks with --data")
    checked_fingerprint(base.model, basis)
    for subject in subjects:
        check_length(base, subject)
    weights = None
    if adapters:
        weights = measure_weights(
            adapters,
            basis,
            leave_one_out=settings.leave_one_out,
            n_sweeps=settings.n_sweeps,
            seed=settings.seed,
            on_site=on_site,
        )
    tasks: list[TaskScores] = [
        score_subject(
            base,
            basis,
            adapters,
            subject,
            leave_one_out=settings.leave_one_out,
            n_sweeps=settings.n_sweeps,
            seed=settings.seed,
            on_way=on_way,
        )
        for subject in subjects
    ]
    return Report(f"onebasis {__version__}", _summary(basis.spec), weights, tuple(tasks))


def count_ways(subjects: Sequence[Subject], adapters: Sequence[ReadAdapter], settings: ReportSettings) -> int:
    """How often `on_way` will be called."""
    return sum(n_ways(subject, adapters, leave_one_out=settings.leave_one_out) for subject in subjects)


def _summary(spec: BasisSpec) -> BasisSummary:
    return BasisSummary(
        digest=spec.digest,
        kind=spec.kind,
        base_model=spec.base_model,
        size_bytes=spec.size_bytes,
        n_sites=len(spec.sites),
        k_in=(min(site.k_in for site in spec.sites), max(site.k_in for site in spec.sites)),
        k_out=(min(site.k_out for site in spec.sites), max(site.k_out for site in spec.sites)),
    )
