"""Request headers that say what is meant: conditions (RFC 9110), the body's digest (RFC 9530), metadata."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Annotated, Final

from fastapi import Header, Response

from onebasis.coefficients.metadata import check_metadata
from onebasis.coefficients.preconditions import ANY, Precondition, names
from onebasis.core.errors import InvalidParameter
from onebasis.core.ids import Digest

IfMatch = Annotated[
    list[str] | None, Header(description='`*`, or `"sha256:<digest>", ...`: the version that must be current')
]
IfNoneMatch = Annotated[
    list[str] | None, Header(description='`*`, or `"sha256:<digest>", ...`: the version that must not be current')
]
ContentDigest = Annotated[str | None, Header(description="`sha-256=:<base64>:` of the body (RFC 9530)")]
TaskMetadata = Annotated[
    str | None, Header(alias="OneBasis-Metadata", description="JSON object of texts, to note beside the version")
]

_WEAK: Final = "W/"
_ENTITY_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')
_SHA256_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")


def precondition(if_match: list[str] | None, if_none_match: list[str] | None) -> Precondition:
    """What a write demands. A weak tag never matches in If-Match, as the RFC says.

    Raises:
        InvalidParameter: a header is no list of entity tags.
    """
    return Precondition(
        if_match=_entity_tags("If-Match", if_match),
        if_none_match=_without_weakness(_entity_tags("If-None-Match", if_none_match)),
    )


def not_modified(if_none_match: list[str] | None, digest: Digest) -> Response | None:
    """The answer to a read whose client has that version already. Raises InvalidParameter."""
    known = _without_weakness(_entity_tags("If-None-Match", if_none_match))
    return Response(status_code=304, headers=etag(digest)) if known is not None and names(known, digest) else None


def etag(digest: Digest) -> dict[str, str]:
    """The header that names a version."""
    return {"ETag": f'"{digest}"'}


def declared_digest(header: str | None) -> Digest | None:
    """The sha-256 of a Content-Digest field; other algorithms in it are left aside, as the RFC says.

    Raises:
        InvalidParameter: it has none, or it is malformed.
    """
    if header is None:
        return None
    found = _SHA256_DIGEST.search(header)
    try:
        digest = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise InvalidParameter("Content-Digest", f"needs sha-256=:<base64 of 32 bytes>:, found {header[:100]!r}")
    return Digest(f"sha256:{digest.hex()}")


def task_metadata(header: str | None) -> Mapping[str, str] | None:
    """The table in a OneBasis-Metadata field. Raises InvalidParameter."""
    if header is None:
        return None
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        found = None
    return check_metadata("OneBasis-Metadata", found)


def _entity_tags(param: str, lines: list[str] | None) -> tuple[str, ...] | None:
    """The opaque texts of the tags, weak ones with their mark; `*` alone stands for any."""
    if lines is None:
        return None
    header = ", ".join(lines)
    if header.strip() == ANY:
        return (ANY,)
    tags, position = [], 0
    while position < len(header) and (found := _ENTITY_TAG.match(header, position)):
        tags.append((found[1] or "") + found[2])
        position = found.end()
    if not tags or position < len(header) or header.rstrip().endswith(","):
        raise InvalidParameter(param, f'needs * or quoted tags such as "sha256:<digest>", found {header[:100]!r}')
    return tuple(tags)


def _without_weakness(tags: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if tags is None else tuple(tag.removeprefix(_WEAK) for tag in tags)
