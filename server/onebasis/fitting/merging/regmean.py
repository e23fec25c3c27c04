"""RegMean: the merge whose outputs are closest to each task's own, on that task's inputs (arXiv 2212.09849), on cores.

In a shared basis an update's output is U^T S z with z = V x, so the problem has the size of the cores, not of the
layers, and U drops out: minimise sum_t E |(S - S_t) z_t|^2. It does not depend on the choice of rows that span the
basis, as TIES and DARE do.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import SiteSpec

Grams = Mapping[str, NDArray[np.float64]]
"""By site, G = E[z z^T] = V E[x x^T] V^T, [k_in, k_in]: what one task's inputs look like through the basis."""


def regmean(
    cores: Sequence[NDArray[np.float32]], grams: Sequence[Grams], sites: Sequence[SiteSpec], *, ridge: float
) -> NDArray[np.float32]:
    """S = (sum_t S_t H_t) (sum_t H_t)^-1 at each site, with H_t = G_t + eps I.

    Args:
        cores: of each task, [n_core_numbers].
        grams: of each task, in the same order; every site.
        sites: of the basis, in its order.
        ridge: eps as a share of the mean diagonal of all tasks' Grams at the site; above 0. It settles directions
            that no task's inputs have: there the result is the mean. Very large, it is the mean everywhere.

    Returns:
        [n_core_numbers] float32.
    """
    merged = np.empty_like(cores[0])
    start = 0
    for site in sites:
        end = start + site.k_out * site.k_in
        own = [one[start:end].reshape(site.k_out, site.k_in).astype(np.float64) for one in cores]
        merged[start:end] = _merged_site(own, [gram[site.name] for gram in grams], ridge).ravel()
        start = end
    return merged


def _merged_site(
    cores: Sequence[NDArray[np.float64]], grams: Sequence[NDArray[np.float64]], ridge: float
) -> NDArray[np.float64]:
    size = grams[0].shape[0]
    eps = ridge * float(np.mean([np.trace(gram) / size for gram in grams]))
    if eps == 0:  # no input ever reaches this site through the basis
        return np.asarray(np.mean(cores, axis=0))
    weights = [gram + eps * np.eye(size) for gram in grams]
    products = sum((core @ weight for core, weight in zip(cores, weights, strict=True)), np.zeros_like(cores[0]))
    merged: NDArray[np.float64] = np.linalg.solve(np.sum(weights, axis=0), products.T).T
    return merged
