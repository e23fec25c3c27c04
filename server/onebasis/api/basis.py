"""The basis that tasks are made for."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from onebasis.api.auth import ANY_KEY
from onebasis.api.conditions import IfNoneMatch, etag, not_modified
from onebasis.api.deps import ServicesDep
from onebasis.core.errors import NoBasis

router = APIRouter(tags=["tasks"], dependencies=[ANY_KEY])


@router.get("/v1/basis", summary="Show the basis")
def show_basis(services: ServicesDep) -> dict[str, Any]:
    """What coefficients have to be made for: digest, base weights, sites and how the basis was made."""
    basis = services.basis
    if basis is None:
        raise NoBasis
    return {
        "object": "basis",
        "digest": basis.digest,
        "size_bytes": basis.size_bytes,
        "kind": basis.kind,
        "base_model": basis.base_model,
        "base_fingerprint": basis.base_fingerprint,
        "sites": [asdict(site) for site in basis.sites],
        "report": basis.report,
    }


@router.get(
    "/v1/basis/content",
    summary="Fetch the basis file",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 304: {"description": "The client has it"}},
)
@router.head("/v1/basis/content", include_in_schema=False)
def basis_content(services: ServicesDep, if_none_match: IfNoneMatch = None) -> Response:
    """The file's bytes, streamed from disk; ranges may be asked for."""
    if services.basis is None or services.basis_path is None:
        raise NoBasis
    digest = services.basis.digest
    return not_modified(if_none_match, digest) or FileResponse(
        services.basis_path, media_type="application/octet-stream", headers=etag(digest)
    )
