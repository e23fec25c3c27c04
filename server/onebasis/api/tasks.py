"""The task registry over HTTP: upload, list, show, fetch, delete; and the basis that tasks are made for."""

import base64
import binascii
import re
import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from onebasis.api.auth import ANY_KEY, REGISTER
from onebasis.api.deps import Services, ServicesDep
from onebasis.coefficients.preconditions import Precondition
from onebasis.coefficients.registry import RegisteredTask, Registration
from onebasis.core.errors import InvalidParameter, NoBasis, ServeError
from onebasis.core.ids import Digest, parse_digest

router = APIRouter(tags=["tasks"], dependencies=[ANY_KEY])

_SHA256_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")

IfMatch = Annotated[str | None, Header(description='`"sha256:<digest>"`: the version that must be current')]
IfNoneMatch = Annotated[str | None, Header(description="`*`: the task must not exist")]
ContentDigest = Annotated[str | None, Header(description="`sha-256=:<base64>:` of the body (RFC 9530)")]


@router.put(
    "/v1/tasks/{name}",
    summary="Register a coefficient file under a name",
    status_code=201,
    dependencies=[REGISTER],
    responses={200: {"description": "The task stands at these bytes already"}},
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
)
async def put_task(
    name: str,
    request: Request,
    services: ServicesDep,
    content_digest: ContentDigest = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Body: the bytes of a `*.coef.safetensors` file.

    201 with a new version stored, 200 when the task stands at these bytes already. Once answered it serves, and
    survives a crash. A refused file changes nothing.
    """
    started_s = time.monotonic()
    try:
        declared = _declared_digest(content_digest)
        precondition = _precondition(if_match, if_none_match)
        data = await request.body()
        registration = await run_in_threadpool(
            services.registry.register, name, data, precondition=precondition, declared_digest=declared
        )
    except ServeError as error:
        services.metrics.observe_upload(error.code, time.monotonic() - started_s)
        raise
    services.metrics.observe_upload(_result(registration), time.monotonic() - started_s)
    return JSONResponse(
        _card(registration.task, services),
        status_code=201 if registration.created else 200,
        headers=_etag(registration.task) | {"Location": f"/v1/tasks/{name}"},
    )


@router.get("/v1/tasks", summary="List tasks by name")
def list_tasks(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(description="the last name of the page before")] = None,
) -> dict[str, Any]:
    """One page of the registry."""
    page = services.registry.page(limit, after)
    return {
        "object": "list",
        "data": [_card(task, services) for task in page.tasks],
        "first_id": page.tasks[0].name if page.tasks else None,
        "last_id": page.tasks[-1].name if page.tasks else None,
        "has_more": page.has_more,
    }


@router.get("/v1/tasks/{name}", summary="Show a task")
@router.head("/v1/tasks/{name}", include_in_schema=False)
def show_task(name: str, services: ServicesDep) -> Response:
    """The current version; its digest is the ETag."""
    task = services.registry.get(name)
    return JSONResponse(_card(task, services), headers=_etag(task))


@router.get(
    "/v1/tasks/{name}/content",
    summary="Fetch the coefficient file",
    dependencies=[REGISTER],
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def task_content(name: str, services: ServicesDep) -> Response:
    """The exact bytes that were uploaded."""
    task = services.registry.get(name)
    return Response(services.registry.content(name), media_type="application/octet-stream", headers=_etag(task))


@router.delete("/v1/tasks/{name}", summary="Delete a task", dependencies=[REGISTER])
def delete_task(name: str, services: ServicesDep, if_match: IfMatch = None) -> dict[str, Any]:
    """Requests in flight finish on the version that they began with."""
    services.registry.delete(name, _precondition(if_match, None))
    return {"id": name, "object": "task.deleted", "deleted": True}


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


def _card(task: RegisteredTask, services: Services) -> dict[str, Any]:
    return {
        "id": task.name,
        "object": "task",
        "digest": task.digest,
        "generation": task.generation,
        "base": services.base_name,
        "basis": services.basis_digest,
        "size_bytes": task.size_bytes,
        "form": task.form,
        "k": task.k,
        "created_at": task.created_at,
        "state": task.state,
        "reason": task.reason,
        "provenance": task.provenance,
    }


def _etag(task: RegisteredTask) -> dict[str, str]:
    return {"ETag": f'"{task.digest}"'}


def _result(registration: Registration) -> str:
    if not registration.created:
        return "unchanged"
    return "replaced" if registration.replaced else "created"


def _precondition(if_match: str | None, if_none_match: str | None) -> Precondition:
    if if_none_match not in (None, "*"):
        raise InvalidParameter("If-None-Match", f"only * is supported, found {if_none_match!r}")
    if if_match is None:
        return Precondition(if_none_match=if_none_match == "*")
    return Precondition(if_match=parse_digest(if_match.strip('"')), if_none_match=if_none_match == "*")


def _declared_digest(header: str | None) -> Digest | None:
    """The sha-256 of a Content-Digest field (RFC 9530); other algorithms in it are left aside, as the RFC says."""
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
