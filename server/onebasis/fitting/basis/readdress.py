"""Coefficient files of a basis, rewritten for one that extends it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec
from onebasis.coefficients.container import Container, RawTensor, read_container, write_container
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.lineage import Ancestor
from onebasis.coefficients.validate import bind, n_coefficients
from onebasis.core.errors import InvalidBasis, WrongBasis

_TENSOR: Final = "coefficients"


@dataclass(frozen=True, slots=True)
class Readdressed:
    """A file for the extended basis.

    k: rows of it that the file uses; None for a vector, which mixing cores lower to a core.
    n_zeros: numbers that had to be added because sites grew by different counts.
    """

    data: bytes
    k: int | None
    n_zeros: int


def readdress(data: bytes, extended: BasisSpec, lineage: Sequence[Ancestor]) -> Readdressed:
    """The same task in a basis whose first rows are those of the file's basis: bit-identical outputs.

    The file says which prefix of the rows it uses. One number has to do for all sites and both sides of a core, so
    where an old core is smaller than the prefix it gets zeros. Numbers keep their width; everything else in the file
    stays, and its provenance tells the digest of the old file. The numbers of a vector weigh the old mixing cores,
    which have zeros at the new rows; nothing about them changes.

    Args:
        lineage: what `extended` extends, checked by `check_rows`.

    Raises:
        WrongBasis: the file's basis is not among those.
        InvalidBasis: the file is for `extended` itself, or a vector whose basis had other mixing cores than `extended`.
        CoefficientError: the file does not fit its own basis.
    """
    file = parse_coefficients(data)
    if file.basis == extended.digest:
        raise InvalidBasis(f"basis {extended.digest}: the file is for it already; leave it out")
    ancestor = next((ancestor for ancestor in lineage if ancestor.digest == file.basis), None)
    if ancestor is None:
        raise WrongBasis(found=file.basis, loaded=extended.digest)
    old = ancestor.spec(extended)
    if file.form == "vector" and ancestor.mixing_digest is not None and not old.has_mixing_cores:
        raise InvalidBasis(
            f"basis {extended.digest}: it has other mixing cores than {file.basis}, which this vector weighs; "
            f"give one that has them still, or fit the task again"
        )
    bind(file, old)
    sites = [site for site in old.sites if file.sites is None or site.name in file.sites]
    k, numbers = _at_prefix(file, sites, extended)
    container = read_container(data)
    metadata = dict(container.metadata) | {
        "basis": extended.digest,
        "base_fingerprint": extended.base_fingerprint,
        "provenance": _compact({**file.provenance, "readdressed_from": {"file": file.digest, "basis": file.basis}}),
    }
    if k is not None:
        metadata["k"] = str(k)
    if len(sites) < len(extended.sites):
        metadata["sites"] = _compact([site.name for site in sites])
    tensor = RawTensor(container.tensors[_TENSOR].dtype, numbers.shape, numbers.tobytes())
    written = write_container(Container(metadata, {**container.tensors, _TENSOR: tensor}))
    bind(parse_coefficients(written), extended)
    return Readdressed(written, k, len(numbers) - len(file.values))


def _extent(file: CoefficientFile, site: SiteSpec) -> int:
    """The prefix that a site's numbers need: of a core its longer side, of a diagonal its length."""
    rows, columns = site.core_shape(file.k)
    return min(rows, columns) if file.form == "diag" else max(rows, columns)


def _at_prefix(
    file: CoefficientFile, sites: Sequence[SiteSpec], extended: BasisSpec
) -> tuple[int | None, NDArray[np.generic]]:
    """The prefix of rows that does for all these sites, and the numbers as the extended basis wants them under it."""
    if file.form == "vector":
        return None, file.values
    k = max(_extent(file, site) for site in sites)
    now = {site.name: site for site in extended.sites}
    parts: list[NDArray[np.generic]] = []
    taken = 0
    for site in sites:
        count = n_coefficients(file.form, site, file.k)
        old = file.values[taken : taken + count]
        taken += count
        if file.form == "diag":
            part = np.zeros(n_coefficients(file.form, now[site.name], k), old.dtype)
            part[:count] = old
        else:
            rows, columns = site.core_shape(file.k)
            part = np.zeros(now[site.name].core_shape(k), old.dtype)
            part[:rows, :columns] = old.reshape(rows, columns)
        parts.append(part.ravel())
    return k, np.concatenate(parts)


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=isinstance(value, dict), separators=(",", ":"))
