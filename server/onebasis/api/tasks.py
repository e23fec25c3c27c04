"""The task registry over HTTP: upload, list, show, fetch, delete."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from onebasis.api.auth import ANY_KEY, REGISTER, CallerDep
from onebasis.api.conditions import (
    ContentDigest,
    IfMatch,
    IfNoneMatch,
    TaskMetadata,
    declared_digest,
    etag,
    not_modified,
    precondition,
    task_metadata,
)
from onebasis.api.deps import ServicesDep
from onebasis.api.task_cards import registered, task_card
from onebasis.coefficients.registry import Registration
from onebasis.core.errors import ServeError
from onebasis.core.ids import parse_digest

router = APIRouter(tags=["tasks"], dependencies=[ANY_KEY])

ContentOf = Annotated[str | None, Query(description="`sha256:<hex>` of an older version; by default the current one")]


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
    caller: CallerDep,
    content_digest: ContentDigest = None,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
    metadata: TaskMetadata = None,
) -> Response:
    """Body: the bytes of a `*.coef.safetensors` file.

    201 with a new version stored, 200 when the task stands at these bytes already, under this metadata or when none
    is given. Once answered it serves, and survives a crash. A refused file changes nothing.
    """
    started_s = time.monotonic()
    try:
        declared = declared_digest(content_digest)
        demanded = precondition(if_match, if_none_match)
        noted = task_metadata(metadata)
        data = await request.body()
        registration = await run_in_threadpool(
            services.registry.register,
            name,
            data,
            author=caller,
            precondition=demanded,
            declared_digest=declared,
            metadata=noted,
        )
    except ServeError as error:
        services.metrics.observe_upload(error.code, time.monotonic() - started_s)
        raise
    services.metrics.observe_upload(_result(registration), time.monotonic() - started_s)
    return registered(registration, services)


@router.get("/v1/tasks", summary="List tasks by name")
def list_tasks(
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(description="the last name of the page before")] = None,
) -> dict[str, Any]:
    """One page of the tasks that the caller can name."""
    page = services.registry.page(limit, after, caller.tenant)
    return {
        "object": "list",
        "data": [task_card(task, services) for task in page.tasks],
        "first_id": page.tasks[0].name if page.tasks else None,
        "last_id": page.tasks[-1].name if page.tasks else None,
        "has_more": page.has_more,
    }


@router.get("/v1/tasks/{name}", summary="Show a task", responses={304: {"description": "It stands at that version"}})
@router.head("/v1/tasks/{name}", include_in_schema=False)
def show_task(name: str, services: ServicesDep, caller: CallerDep, if_none_match: IfNoneMatch = None) -> Response:
    """The current version; its digest is the ETag."""
    task = services.registry.get(name, caller.tenant)
    unchanged = not_modified(if_none_match, task.digest)
    return unchanged or JSONResponse(task_card(task, services), headers=etag(task.digest))


@router.get(
    "/v1/tasks/{name}/content",
    summary="Fetch the coefficient file",
    dependencies=[REGISTER],
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}, 304: {"description": "The client has it"}},
)
@router.head("/v1/tasks/{name}/content", include_in_schema=False, dependencies=[REGISTER])
def task_content(
    name: str,
    services: ServicesDep,
    caller: CallerDep,
    digest: ContentOf = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The exact bytes that were uploaded, of any version that the task has had since it was last deleted."""
    wanted = None if digest is None else parse_digest(digest)
    found, data = services.registry.content(name, wanted, caller.tenant)
    unchanged = not_modified(if_none_match, found)
    return unchanged or Response(data, media_type="application/octet-stream", headers=etag(found))


@router.delete("/v1/tasks/{name}", summary="Delete a task", dependencies=[REGISTER])
def delete_task(
    name: str,
    services: ServicesDep,
    caller: CallerDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> dict[str, Any]:
    """Requests in flight finish on the version that they began with."""
    services.registry.delete(name, precondition(if_match, if_none_match), author=caller)
    return {"id": name, "object": "task.deleted", "deleted": True}


def _result(registration: Registration) -> str:
    if not registration.created:
        return "unchanged"
    return "replaced" if registration.replaced else "created"
