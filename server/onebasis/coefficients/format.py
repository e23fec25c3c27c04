"""The coefficient file: one task's numbers in one flat tensor, and what they were made for. No torch.

What a file is can be known without a basis; whether it fits one is validate.py's job.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.container import Container, RawTensor, read_container, unique_names, write_container
from onebasis.core.errors import (
    InvalidMetadata,
    MissingTensor,
    NotFinite,
    UnknownForm,
    UnknownTensor,
    UnsupportedFormatVersion,
    WrongDtype,
)
from onebasis.core.ids import Digest, digest_of

COEFFICIENTS_FORMAT: Final = "onebasis.coefficients"
COEFFICIENTS_FORMAT_VERSION: Final = "1"
FORMS: Final = ("core", "diag")
_TENSOR: Final = "coefficients"
_DTYPES: Final = ("F16", "BF16", "F32")
_MAX_IDENTITY_CHARS: Final = 200
_MAX_NESTING: Final = 32
_MAX_PROVENANCE_CHARS: Final = 64 * 1024  # it is in every card, also in a page of a thousand
_SHOWN: Final = slice(100)  # of a stranger's text in a message


@dataclass(frozen=True, slots=True)
class CoefficientFile:
    """A parsed file. Every number is finite; nothing here has been checked against a basis.

    `values` keeps the file's own width, [n] of float16, float32, or uint16 holding bfloat16; `numbers()`
    gives float32. `k` is a prefix of the basis rows, `sites` a subset of its sites; None means all.
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
    shape: tuple[int, ...]
    values: NDArray[np.generic]

    def numbers(self) -> NDArray[np.float32]:
        """[n] the coefficients in float32, exact."""
        return _widen(self.values)


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
    tensor = _only_tensor(container)
    values = _values(tensor)
    return CoefficientFile(
        digest=digest_of(data),
        size_bytes=len(data),
        form=form,
        basis=Digest(_required(metadata, "basis", "the digest of a basis")),
        base_fingerprint=_required(metadata, "base_fingerprint", "the fingerprint of base weights"),
        k=_optional_k(metadata),
        sites=_optional_sites(metadata),
        task=metadata.get("task"),
        provenance=_provenance(metadata),
        shape=tensor.shape,
        values=values,
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
) -> bytes:
    """Bytes of a coefficient file that holds `values` [n] (float16 or float32, kept as given).

    Raises:
        CoefficientError: `parse_coefficients` would refuse the file, for this cause.
    """
    dtype = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}.get(values.dtype)
    if dtype is None:
        raise WrongDtype(found=str(values.dtype), allowed=("float16", "float32"))
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
    numbers = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    data = write_container(Container(metadata, {_TENSOR: RawTensor(dtype, values.shape, numbers)}))
    parse_coefficients(data)  # no file leaves here that a reader refuses
    return data


def _only_tensor(container: Container) -> RawTensor:
    unknown = sorted(container.tensors.keys() - {_TENSOR})
    if unknown:
        raise UnknownTensor([name[_SHOWN] for name in unknown])
    if _TENSOR not in container.tensors:
        raise MissingTensor
    tensor = container.tensors[_TENSOR]
    if tensor.dtype not in _DTYPES:
        raise WrongDtype(found=tensor.dtype, allowed=_DTYPES)
    return tensor


def _values(tensor: RawTensor) -> NDArray[np.generic]:
    stored = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}[tensor.dtype]
    values = np.frombuffer(tensor.data, dtype=stored)
    _check_finite(_widen(values))
    return values


def _widen(values: NDArray[np.generic]) -> NDArray[np.float32]:
    if values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _check_finite(values: NDArray[np.floating[Any]]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise NotFinite(n_bad=int(bad.size), first=int(bad[0]))


def _required(metadata: Mapping[str, str], field: str, allowed: str) -> str:
    text = metadata.get(field, "")
    if not 0 < len(text) <= _MAX_IDENTITY_CHARS:
        raise InvalidMetadata(field, found=text[_SHOWN], allowed=allowed)
    return text


def _optional_k(metadata: Mapping[str, str]) -> int | None:
    text = metadata.get("k")
    if text is None:
        return None
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
