"""The coefficient file: one task's numbers in one flat tensor, and what they were made for. No torch.

Beside them it may hold a residual: for each of some sites a private low-rank update, as two tensors.
What a file is can be known without a basis; whether it fits one is validate.py's job.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.container import Container, read_container, unique_names, write_container
from onebasis.coefficients.numbers import raw_numbers, read_numbers, widen
from onebasis.core.errors import (
    IncompleteResidual,
    InvalidMetadata,
    MissingTensor,
    UnknownForm,
    UnknownTensor,
    UnsupportedFormatVersion,
    WrongResidualShape,
)
from onebasis.core.ids import Digest, digest_of
from onebasis.core.residual import Residual, Residuals

COEFFICIENTS_FORMAT: Final = "onebasis.coefficients"
COEFFICIENTS_FORMAT_VERSION: Final = "1"
FORMS: Final = ("core", "diag", "vector")
_TENSOR: Final = "coefficients"
_RESIDUAL: Final = re.compile(r"residual\.(.+)\.[AB]", re.DOTALL)
_MAX_IDENTITY_CHARS: Final = 200
_MAX_NESTING: Final = 32
_MAX_PROVENANCE_CHARS: Final = 64 * 1024  # it is in every card, also in a page of a thousand
_SHOWN: Final = slice(100)  # of a stranger's text in a message


@dataclass(frozen=True, slots=True)
class CoefficientFile:
    """A parsed file. Every number is finite; nothing here has been checked against a basis.

    `values` keeps the file's own width, [n] of float16, float32, or uint16 holding bfloat16; `numbers()`
    gives float32. `k` is a prefix of the basis rows, `sites` a subset of its sites; None means all. `residual` is
    empty for most files; its factors fit each other.
    """

    digest: Digest
    size_bytes: int
    form: str
    basis: Digest
    base_fingerprint: str
    k: int | None
    sites: tuple[str, ...] | None
    task: str | None
    provenance: Mapping[str, Any]
    values: NDArray[np.generic]
    residual: Residuals = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor as it is in the file; (n,) once it is known to fit a basis."""
        return self.values.shape

    def numbers(self) -> NDArray[np.float32]:
        """The coefficients in float32, exact."""
        return widen(self.values)


def parse_coefficients(data: bytes) -> CoefficientFile:
    """Read a coefficient file.

    Raises:
        CoefficientError: a subclass for each cause, with what was found, what is allowed and what to do.
    """
    container = read_container(data)
    metadata = container.metadata
    if metadata.get("format") != COEFFICIENTS_FORMAT:
        raise InvalidMetadata("format", found=metadata.get("format", "none")[_SHOWN], allowed=repr(COEFFICIENTS_FORMAT))
    version = metadata.get("format_version", "none")
    if version != COEFFICIENTS_FORMAT_VERSION:
        raise UnsupportedFormatVersion(found=version[_SHOWN], supported=COEFFICIENTS_FORMAT_VERSION)
    form = metadata.get("form", "none")
    if form not in FORMS:
        raise UnknownForm(found=form[_SHOWN], supported=FORMS)
    residual_sites = _residual_sites(container)
    values = read_numbers(_TENSOR, container.tensors[_TENSOR])
    return CoefficientFile(
        digest=digest_of(data),
        size_bytes=len(data),
        form=form,
        basis=Digest(_required(metadata, "basis", "the digest of a basis")),
        base_fingerprint=_required(metadata, "base_fingerprint", "the fingerprint of base weights"),
        k=_optional_k(metadata, form),
        sites=_optional_sites(metadata),
        task=metadata.get("task"),
        provenance=_provenance(metadata),
        values=values,
        residual={site: _residual(site, container) for site in residual_sites},
    )


def write_coefficients(
    values: NDArray[np.floating[Any]],
    *,
    form: str,
    basis: Digest,
    base_fingerprint: str,
    k: int | None = None,
    sites: tuple[str, ...] | None = None,
    task: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    residual: Residuals | None = None,
) -> bytes:
    """Bytes of a coefficient file that holds `values` [n] and residuals by site (float16 or float32, kept as given).

    Raises:
        CoefficientError: `parse_coefficients` would refuse the file, for this cause.
    """
    numbers: dict[str, NDArray[Any]] = {_TENSOR: values}
    for site, factors in (residual or {}).items():
        numbers |= {f"residual.{site}.A": factors.a, f"residual.{site}.B": factors.b}
    metadata = {
        "format": COEFFICIENTS_FORMAT,
        "format_version": COEFFICIENTS_FORMAT_VERSION,
        "form": form,
        "basis": basis,
        "base_fingerprint": base_fingerprint,
        "provenance": json.dumps(provenance or {}, sort_keys=True, separators=(",", ":")),
    }
    if k is not None:
        metadata["k"] = str(k)
    if sites is not None:
        metadata["sites"] = json.dumps(sites, separators=(",", ":"))
    if task is not None:
        metadata["task"] = task
    data = write_container(Container(metadata, {name: raw_numbers(name, array) for name, array in numbers.items()}))
    parse_coefficients(data)  # no file leaves here that a reader refuses
    return data


def _residual_sites(container: Container) -> list[str]:
    """The sites that have a residual, after a check that every tensor of the file is accounted for."""
    names = sorted(container.tensors.keys() - {_TENSOR})
    matches = {name: _RESIDUAL.fullmatch(name) for name in names}
    unknown = [name[_SHOWN] for name, match in matches.items() if match is None]
    if unknown:
        raise UnknownTensor(unknown)
    if _TENSOR not in container.tensors:
        raise MissingTensor
    for name in names:
        other = name[:-1] + ("B" if name.endswith("A") else "A")
        if other not in matches:
            raise IncompleteResidual(found=name, missing=other)
    return sorted({match[1] for match in matches.values() if match is not None})


def _residual(site: str, container: Container) -> Residual:
    names = [f"residual.{site}.{factor}" for factor in "AB"]
    a, b = (container.tensors[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise WrongResidualShape(site, needed="A [r, d_in] and B [d_out, r] of one r from 1", found=(a.shape, b.shape))
    return Residual(read_numbers(names[0], a), read_numbers(names[1], b))


def _required(metadata: Mapping[str, str], field: str, allowed: str) -> str:
    text = metadata.get(field, "")
    if not 0 < len(text) <= _MAX_IDENTITY_CHARS:
        raise InvalidMetadata(field, found=text[_SHOWN], allowed=allowed)
    return text


def _optional_k(metadata: Mapping[str, str], form: str) -> int | None:
    text = metadata.get("k")
    if text is None:
        return None
    if form == "vector":
        raise InvalidMetadata("k", found=text[_SHOWN], allowed="to be absent with form vector: mixing cores are whole")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidMetadata("k", found=text[_SHOWN], allowed="a whole number")
    return int(text)


def _optional_sites(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    text = metadata.get("sites")
    if text is None:
        return None
    sites = _json(text)
    if not isinstance(sites, list) or not sites or not all(isinstance(site, str) for site in sites):
        raise InvalidMetadata("sites", found=text[_SHOWN], allowed="a JSON list of site names")
    return tuple(sites)


def _provenance(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    text = metadata.get("provenance", "{}")
    provenance = _json(text) if len(text) <= _MAX_PROVENANCE_CHARS else None
    if not isinstance(provenance, dict):
        allowed = (
            f"a JSON object, nested at most {_MAX_NESTING} deep, of at most {_MAX_PROVENANCE_CHARS} characters, "
            f"without NaN, infinity or a name that comes twice"
        )
        raise InvalidMetadata("provenance", found=text[_SHOWN], allowed=allowed)
    return provenance


def _json(text: str) -> object:
    """The value, or None if it can't go out again in an answer: no JSON, NaN, half a character, too deep."""
    try:
        value: object = json.loads(text, object_pairs_hook=unique_names)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        return value if _nesting(value) <= _MAX_NESTING else None
    except (ValueError, RecursionError):
        return None


def _nesting(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_nesting, inner), default=-1)
