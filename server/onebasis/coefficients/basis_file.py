"""What a basis file says of itself: the sites, their sizes, what it was made for. No torch.

Of its numbers only the mixing cores are read here: a task of the form `vector` is lowered on the host with them.
"""

import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from onebasis.coefficients.container import Header, read_header
from onebasis.core.errors import CoefficientError, InvalidBasis
from onebasis.core.ids import Digest, digest_of_file

BASIS_FORMAT: Final = "onebasis.basis"
BASIS_FORMAT_VERSION: Final = "1"
FACTOR_DTYPES: Final = ("BF16", "F16", "F32")
MIXING_DTYPES: Final = ("F16", "F32")


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One adapted linear layer: weight [d_out, d_in], factors V [k_in, d_in] and U [k_out, d_out].

    n_mix: R of the mixing cores G [R + 1, k_out, k_in], the count of numbers in form `vector`; 0 without any.
    """

    name: str
    d_in: int
    d_out: int
    k_in: int
    k_out: int
    n_mix: int = 0

    def core_shape(self, k: int | None = None) -> tuple[int, int]:
        """(rows, columns) of a core that uses the first k basis rows; all of them when k is None."""
        return (self.k_out, self.k_in) if k is None else (min(k, self.k_out), min(k, self.k_in))


@dataclass(frozen=True)
class BasisSpec:
    """A basis without its factors. `sites` is the canonical order of everything that follows it.

    mixing: by site name G [n_mix + 1, k_out, k_in], float16 or float32 as in the file; empty without mixing cores.
    """

    digest: Digest
    size_bytes: int
    kind: str
    base_model: str
    base_fingerprint: str
    sites: tuple[SiteSpec, ...]
    report: Mapping[str, Any]
    mixing: Mapping[str, NDArray[np.generic]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def has_mixing_cores(self) -> bool:
        """Whether tasks may have the form `vector`."""
        return bool(self.mixing)

    @cached_property
    def n_core_numbers(self) -> int:
        """Count of numbers in all full cores of one task."""
        return sum(site.k_out * site.k_in for site in self.sites)

    @cached_property
    def largest_k(self) -> int:
        """The largest prefix that means anything at some site."""
        return max(max(site.k_in, site.k_out) for site in self.sites)


def basis_metadata(
    *,
    kind: str,
    base_model: str,
    base_fingerprint: str,
    sites: tuple[SiteSpec, ...],
    report: Mapping[str, Any],
) -> dict[str, str]:
    """The metadata of a basis file, as `read_basis_spec` reads it back."""
    return {
        "format": BASIS_FORMAT,
        "format_version": BASIS_FORMAT_VERSION,
        "kind": kind,
        "base_model": base_model,
        "base_fingerprint": base_fingerprint,
        "sites": json.dumps([_fields(site) for site in sites], separators=(",", ":")),
        "report": json.dumps(report, separators=(",", ":"), sort_keys=True),
    }


def read_basis_spec(path: Path) -> BasisSpec:
    """Read and check the header of a basis file, and its mixing cores if it has any.

    Raises:
        InvalidBasis: unreadable file, another format or version, tensors that do not fit the site list, mixing cores
            that are not finite.
    """
    try:
        header = read_header(path)
        digest = digest_of_file(path)
        size_bytes = path.stat().st_size
    except OSError as error:
        raise InvalidBasis(f"basis {path}: {error.strerror or error}; give a *.basis.safetensors file") from error
    except CoefficientError as error:
        raise InvalidBasis(f"basis {path}: {error}") from error
    metadata = header.metadata
    for name, needed in (("format", BASIS_FORMAT), ("format_version", BASIS_FORMAT_VERSION)):
        if metadata.get(name) != needed:
            raise InvalidBasis(f"basis {path}: {name} needs {needed!r}, found {metadata.get(name)!r}")
    try:
        sites = tuple(_site(fields) for fields in json.loads(metadata["sites"]))
        report = json.loads(metadata["report"])
        if not isinstance(report, dict):
            raise TypeError("the report is not a JSON object")
        kind, base_model, fingerprint = (metadata[name] for name in ("kind", "base_model", "base_fingerprint"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidBasis(f"basis {path}: metadata is incomplete or malformed ({error}); build it again") from error
    _check_tensors(path, header, sites)
    return BasisSpec(digest, size_bytes, kind, base_model, fingerprint, sites, report, _read_mixing(path, sites))


def _fields(site: SiteSpec) -> dict[str, object]:
    """As in a file's site list, where a basis without mixing cores says nothing of them."""
    fields = asdict(site)
    return fields if site.n_mix else {name: value for name, value in fields.items() if name != "n_mix"}


def _site(fields: dict[str, Any]) -> SiteSpec:
    site = SiteSpec(**fields)
    sizes = (site.d_in, site.d_out, site.k_in, site.k_out)
    if not isinstance(site.name, str) or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"site {site.name!r} needs a name and four whole numbers from 1, found {sizes}")
    if type(site.n_mix) is not int or site.n_mix < 0:
        raise ValueError(f"site {site.name!r}: n_mix needs a whole number, found {site.n_mix!r}")
    return site


def _check_tensors(path: Path, header: Header, sites: tuple[SiteSpec, ...]) -> None:
    needed: dict[str, tuple[int, ...]] = {f"{site.name}.V": (site.k_in, site.d_in) for site in sites}
    needed |= {f"{site.name}.U": (site.k_out, site.d_out) for site in sites}
    if len(needed) != 2 * len(sites) or not sites:
        raise InvalidBasis(f"basis {path}: the site list is empty or names a site twice")
    mixing: dict[str, tuple[int, ...]] = {
        f"{site.name}.G": (site.n_mix + 1, site.k_out, site.k_in) for site in sites if site.n_mix
    }
    if mixing and len(mixing) < len(sites):
        raise InvalidBasis(f"basis {path}: some sites have mixing cores, others none; build it with all or without")
    needed |= mixing
    if needed != header.shapes:
        names = sorted(needed.keys() ^ header.shapes.keys()) or [
            name for name, shape in needed.items() if header.shapes[name] != shape
        ]
        raise InvalidBasis(f"basis {path}: tensors and site list disagree, first at {names[0]!r}; build it again")
    _check_dtypes(path, header, "factors", needed.keys() - mixing.keys(), FACTOR_DTYPES)
    _check_dtypes(path, header, "mixing cores", mixing.keys(), MIXING_DTYPES)


def _check_dtypes(path: Path, header: Header, what: str, names: Set[str], allowed: tuple[str, ...]) -> None:
    wrong = sorted({header.dtypes[name] for name in names} - {*allowed})
    if wrong:
        raise InvalidBasis(f"basis {path}: {what} are {wrong[0]}; allowed: {', '.join(allowed)}")


def _read_mixing(path: Path, sites: tuple[SiteSpec, ...]) -> dict[str, NDArray[np.generic]]:
    if not sites[0].n_mix:
        return {}
    try:
        with safe_open(path, framework="np") as file:
            mixing = {site.name: file.get_tensor(f"{site.name}.G") for site in sites}
    except SafetensorError as error:
        raise InvalidBasis(f"basis {path}: {error}; build it again") from error
    for name, cores in mixing.items():
        if not np.isfinite(cores).all():
            raise InvalidBasis(f"basis {path}: the mixing cores of {name} have NaN or infinite numbers; build it again")
    return mixing
