"""What a basis file says of itself: the sites, their sizes, what it was made for. Header only, no torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from onebasis.coefficients.container import Header, read_header
from onebasis.core.errors import CoefficientError, InvalidBasis
from onebasis.core.ids import Digest, digest_of_file

BASIS_FORMAT: Final = "onebasis.basis"
BASIS_FORMAT_VERSION: Final = "1"
FACTOR_DTYPES: Final = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """One adapted linear layer: weight [d_out, d_in], factors V [k_in, d_in] and U [k_out, d_out]."""

    name: str
    d_in: int
    d_out: int
    k_in: int
    k_out: int

    def core_shape(self, k: int | None = None) -> tuple[int, int]:
        """(rows, columns) of a core that uses the first k basis rows; all of them when k is None."""
        return (self.k_out, self.k_in) if k is None else (min(k, self.k_out), min(k, self.k_in))


@dataclass(frozen=True)
class BasisSpec:
    """A basis without its numbers. `sites` is the canonical order of everything that follows it."""

    digest: Digest
    size_bytes: int
    kind: str
    base_model: str
    base_fingerprint: str
    sites: tuple[SiteSpec, ...]
    report: Mapping[str, Any]

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
        "sites": json.dumps([asdict(site) for site in sites], separators=(",", ":")),
        "report": json.dumps(report, separators=(",", ":"), sort_keys=True),
    }


def read_basis_spec(path: Path) -> BasisSpec:
    """Read and check the header of a basis file.

    Raises:
        InvalidBasis: unreadable file, another format or version, tensors that do not fit the site list.
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
    for field, needed in (("format", BASIS_FORMAT), ("format_version", BASIS_FORMAT_VERSION)):
        if metadata.get(field) != needed:
            raise InvalidBasis(f"basis {path}: {field} needs {needed!r}, found {metadata.get(field)!r}")
    try:
        sites = tuple(_site(fields) for fields in json.loads(metadata["sites"]))
        report = json.loads(metadata["report"])
        if not isinstance(report, dict):
            raise TypeError("the report is not a JSON object")
        spec = BasisSpec(
            digest=digest,
            size_bytes=size_bytes,
            kind=metadata["kind"],
            base_model=metadata["base_model"],
            base_fingerprint=metadata["base_fingerprint"],
            sites=sites,
            report=report,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidBasis(f"basis {path}: metadata is incomplete or malformed ({error}); build it again") from error
    _check_tensors(path, header, sites)
    return spec


def _site(fields: dict[str, Any]) -> SiteSpec:
    site = SiteSpec(**fields)
    sizes = (site.d_in, site.d_out, site.k_in, site.k_out)
    if not isinstance(site.name, str) or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"site {site.name!r} needs a name and four whole numbers from 1, found {sizes}")
    return site


def _check_tensors(path: Path, header: Header, sites: tuple[SiteSpec, ...]) -> None:
    needed = {f"{site.name}.V": (site.k_in, site.d_in) for site in sites}
    needed |= {f"{site.name}.U": (site.k_out, site.d_out) for site in sites}
    if len(needed) != 2 * len(sites) or not sites:
        raise InvalidBasis(f"basis {path}: the site list is empty or names a site twice")
    if needed != header.shapes:
        names = sorted(needed.keys() ^ header.shapes.keys()) or [
            name for name, shape in needed.items() if header.shapes[name] != shape
        ]
        raise InvalidBasis(f"basis {path}: tensors and site list disagree, first at {names[0]!r}; build it again")
    wrong = sorted(set(header.dtypes.values()) - set(FACTOR_DTYPES))
    if wrong:
        raise InvalidBasis(f"basis {path}: factors are {wrong[0]}; allowed: {', '.join(FACTOR_DTYPES)}")
