"""Does a coefficient file fit the loaded basis? If so, the pair can say what its cores are. No torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec
from onebasis.coefficients.format import CoefficientFile
from onebasis.coefficients.numbers import widen
from onebasis.core.errors import (
    NoMixingCores,
    ResidualRankTooHigh,
    ResidualTooLarge,
    UnknownSite,
    WrongBase,
    WrongBasis,
    WrongLength,
    WrongPrefix,
    WrongResidualShape,
)
from onebasis.core.ids import Digest
from onebasis.core.request import StoredNumbers
from onebasis.core.residual import ResidualLimits, Residuals, count_numbers


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BoundCoefficients:
    """A coefficient file that fits a basis; made by `bind` only. Immutable, shared between threads."""

    file: CoefficientFile
    basis: BasisSpec

    @property
    def digest(self) -> Digest:
        return self.file.digest

    @property
    def rank(self) -> int:
        return self.basis.largest_k if self.file.k is None else self.file.k

    def flat_cores(self) -> NDArray[np.float32]:
        """[n_core_numbers] all sites' full cores, row-major, in the basis's order.

        Rows and columns past the file's prefix, and sites it does not name, are zero.
        """
        numbers = self.file.numbers()
        if self.file.form == "core" and len(numbers) == self.basis.n_core_numbers:
            return numbers  # every core is whole: the file has them as they are wanted
        chosen = _chosen_sites(self.file, self.basis)
        flat = np.zeros(self.basis.n_core_numbers, dtype=np.float32)
        taken = 0
        start = 0
        for site in self.basis.sites:
            n_core = site.k_out * site.k_in
            if site.name in chosen:
                count = n_coefficients(self.file.form, site, self.file.k)
                core = flat[start : start + n_core].reshape(site.k_out, site.k_in)
                own = numbers[taken : taken + count]
                if self.file.form == "vector":
                    _mix_core(core, self.basis.mixing[site.name], own)
                else:
                    _fill_core(core, self.file.form, own, site.core_shape(self.file.k))
                taken += count
            start += n_core
        return flat

    @property
    def stored(self) -> StoredNumbers:
        """The file's numbers in their own width, and which part of each site's core they fill."""
        chosen = _chosen_sites(self.file, self.basis)
        used = tuple(site.core_shape(self.file.k) if site.name in chosen else (0, 0) for site in self.basis.sites)
        return StoredNumbers(self.file.values, self.file.form, used)

    @property
    def residual(self) -> Residuals:
        """By site; empty for a task that the basis holds whole."""
        return self.file.residual


def n_coefficients(form: str, site: SiteSpec, k: int | None) -> int:
    """Count of numbers that `form` keeps for one site, under a prefix of k basis rows."""
    rows, columns = site.core_shape(k)
    return {"core": rows * columns, "diag": min(rows, columns), "vector": site.n_mix}[form]


def bind(file: CoefficientFile, basis: BasisSpec, limits: ResidualLimits | None = None) -> BoundCoefficients:
    """Check a file against the loaded basis.

    Args:
        limits: of its residual; None for any that the sites can have.

    Raises:
        WrongBasis, WrongBase, NoMixingCores, WrongPrefix, UnknownSite, WrongLength, WrongResidualShape,
        ResidualRankTooHigh, ResidualTooLarge: the first cause found, in this order.
    """
    if file.basis != basis.digest:
        raise WrongBasis(found=file.basis, loaded=basis.digest)
    if file.base_fingerprint != basis.base_fingerprint:
        raise WrongBase(found=file.base_fingerprint, loaded=basis.base_fingerprint)
    if file.form == "vector" and not basis.has_mixing_cores:
        raise NoMixingCores
    if file.k is not None and not 1 <= file.k <= basis.largest_k:
        raise WrongPrefix(found=file.k, largest=basis.largest_k)
    chosen = _chosen_sites(file, basis)
    if file.sites is not None and list(chosen) != list(file.sites):
        strange = [name for name in file.sites if name not in chosen] or list(file.sites)
        raise UnknownSite([name[:100] for name in strange])
    is_whole = (file.form, file.k, file.sites) == ("core", None, None)  # the common case, without a walk of the sites
    needed = (
        basis.n_core_numbers if is_whole else sum(n_coefficients(file.form, site, file.k) for site in chosen.values())
    )
    if file.shape != (needed,):
        raise WrongLength(needed=needed, found=file.shape, form=file.form)
    if file.residual:
        _check_residual(file.residual, basis, limits)
    return BoundCoefficients(file, basis)


def _chosen_sites(file: CoefficientFile, basis: BasisSpec) -> dict[str, SiteSpec]:
    """The file's sites in the basis's order."""
    names = None if file.sites is None else set(file.sites)
    return {site.name: site for site in basis.sites if names is None or site.name in names}


def _check_residual(residual: Residuals, basis: BasisSpec, limits: ResidualLimits | None) -> None:
    sites = {site.name: site for site in basis.sites}
    strange = [name for name in residual if name not in sites]
    if strange:
        raise UnknownSite([name[:100] for name in strange])
    for name, factors in residual.items():
        site = sites[name]
        if (factors.a.shape[1], factors.b.shape[0]) != (site.d_in, site.d_out):
            needed = f"A [r, {site.d_in}] and B [{site.d_out}, r]"
            raise WrongResidualShape(name, needed=needed, found=(factors.a.shape, factors.b.shape))
        whole = min(site.d_in, site.d_out)
        if factors.rank > whole:
            raise ResidualRankTooHigh(name, found=factors.rank, allowed=whole, remedy="a higher one adds nothing")
        if limits is not None and factors.rank > limits.rank:
            remedy = "lower it, or raise --max-residual-rank" if limits.rank else "--max-residual-rank 0 allows none"
            raise ResidualRankTooHigh(name, found=factors.rank, allowed=limits.rank, remedy=remedy)
    if limits is not None and count_numbers(residual) > limits.n_numbers:
        raise ResidualTooLarge(found=count_numbers(residual), allowed=limits.n_numbers)


def _mix_core(core: NDArray[np.float32], mixing: NDArray[np.generic], numbers: NDArray[np.float32]) -> None:
    """core = G_0 + sum_j c_j G_j. core: [k_out, k_in], mixing: [R + 1, k_out, k_in], numbers: [R].

    Summed number by number, one mixing core after the other: in an extended basis, whose mixing cores have zeros
    beside and below the old ones, the same bits come out.
    """
    wide = widen(mixing)
    core[:] = wide[0]
    for number, direction in zip(numbers, wide[1:], strict=True):
        core += number * direction


def _fill_core(core: NDArray[np.float32], form: str, numbers: NDArray[np.float32], used: tuple[int, int]) -> None:
    """Write one site's numbers into its zeroed core [k_out, k_in]."""
    if form == "diag":
        diagonal = np.arange(len(numbers))
        core[diagonal, diagonal] = numbers
    else:
        core[: used[0], : used[1]] = numbers.reshape(used)
