"""Which bases a basis was extended from: their rows come first in it, bit by bit. No torch.

Noted in the basis's report as `extends`, nearest first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec
from onebasis.core.errors import InvalidBasis, InvalidDigest
from onebasis.core.ids import Digest, parse_digest

EXTENDS: Final = "extends"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A basis whose rows are the first ones of another.

    rows_digest: over all its factors' bytes, to check that they are.
    sizes: (k_out, k_in) it had, by site.
    """

    digest: Digest
    rows_digest: Digest
    base_fingerprint: str
    sizes: Mapping[str, tuple[int, int]]

    def as_report(self) -> dict[str, Any]:
        return {
            "basis": self.digest,
            "rows_digest": self.rows_digest,
            "base_fingerprint": self.base_fingerprint,
            "sizes": {site: list(size) for site, size in self.sizes.items()},
        }

    def spec(self, extended: BasisSpec) -> BasisSpec:
        """Its header, as far as coefficients can tell, from that of a basis that extends it."""
        sites = tuple(
            SiteSpec(site.name, d_in=site.d_in, d_out=site.d_out, k_out=size[0], k_in=size[1])
            for site in extended.sites
            if (size := self.sizes.get(site.name)) is not None
        )
        return BasisSpec(self.digest, 0, extended.kind, extended.base_model, self.base_fingerprint, sites, {})


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
    )
