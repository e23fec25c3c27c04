"""Which bases a basis was extended from: their rows come first in it, bit by bit. No torch.

Noted in the basis's report as `extends`, nearest first.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec
from onebasis.core.errors import InvalidBasis, InvalidDigest
from onebasis.core.ids import Digest, parse_digest

EXTENDS: Final = "extends"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A basis whose rows are the first ones of another.

    rows_digest: over all its factors' bytes, to check that they are.
    sizes: (k_out, k_in) it had, by site.
    mixing_digest: over its mixing cores' bytes; None if it had none.
    """

    digest: Digest
    rows_digest: Digest
    base_fingerprint: str
    sizes: Mapping[str, tuple[int, int]]
    mixing_digest: Digest | None = None

    def as_report(self) -> dict[str, Any]:
        report: dict[str, Any] = {
            "basis": self.digest,
            "rows_digest": self.rows_digest,
            "base_fingerprint": self.base_fingerprint,
            "sizes": {site: list(size) for site, size in self.sizes.items()},
        }
        return report if self.mixing_digest is None else report | {"mixing_digest": self.mixing_digest}

    def spec(self, extended: BasisSpec) -> BasisSpec:
        """Its header, as far as coefficients can tell, from that of a basis that extends it.

        Without mixing cores if `extended` has others now.
        """
        mixing = mixing_of(extended, self.sizes)
        if mixing_digest(mixing) != self.mixing_digest:
            mixing = {}
        sites = tuple(
            SiteSpec(
                site.name,
                d_in=site.d_in,
                d_out=site.d_out,
                k_out=size[0],
                k_in=size[1],
                n_mix=site.n_mix if mixing else 0,
            )
            for site in extended.sites
            if (size := self.sizes.get(site.name)) is not None
        )
        base = (extended.kind, extended.base_model, self.base_fingerprint)
        return BasisSpec(self.digest, 0, *base, sites, {}, mixing)


def mixing_of(spec: BasisSpec, sizes: Mapping[str, tuple[int, int]]) -> dict[str, NDArray[np.generic]]:
    """The first (k_out, k_in) rows and columns of the mixing cores of these sites; empty where there are none."""
    return {site: spec.mixing[site][:, :k_out, :k_in] for site, (k_out, k_in) in sizes.items() if site in spec.mixing}


def mixing_digest(mixing: Mapping[str, NDArray[np.generic]]) -> Digest | None:
    """`sha256:<hex>` over mixing cores as their file has them; None without any."""
    if not mixing:
        return None
    state = hashlib.sha256()
    for site, cores in sorted(mixing.items()):
        state.update(f"{site}.G:{cores.dtype}:{cores.shape}:".encode())
        state.update(np.ascontiguousarray(cores).tobytes())
    return Digest("sha256:" + state.hexdigest())


def ancestors(spec: BasisSpec) -> tuple[Ancestor, ...]:
    """What a basis says it extends, nearest first.

    Raises:
        InvalidBasis: it says so in a form that makes no sense.
    """
    try:
        found = tuple(_ancestor(fields) for fields in spec.report.get(EXTENDS, ()))
    except (KeyError, TypeError, ValueError, AttributeError, InvalidDigest) as error:
        raise InvalidBasis(f"basis {spec.digest}: its record of what it extends is malformed ({error})") from error
    for ancestor in found:
        now = {site.name: site for site in spec.sites}
        for name, (k_out, k_in) in ancestor.sizes.items():
            site = now.get(name)
            if site is None or not (1 <= k_out <= site.k_out and 1 <= k_in <= site.k_in):
                raise InvalidBasis(f"basis {spec.digest}: it has not all rows of {ancestor.digest} at {name!r}")
    return found


def _ancestor(fields: Mapping[str, Any]) -> Ancestor:
    return Ancestor(
        digest=parse_digest(fields["basis"]),
        rows_digest=parse_digest(fields["rows_digest"]),
        base_fingerprint=str(fields["base_fingerprint"]),
        sizes={str(site): (int(k_out), int(k_in)) for site, (k_out, k_in) in fields["sizes"].items()},
        mixing_digest=parse_digest(fields["mixing_digest"]) if "mixing_digest" in fields else None,
    )
