"""The history of a task: its versions, and going back to one."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from onebasis.api.auth import ANY_KEY, REGISTER, CallerDep
from onebasis.api.conditions import IfMatch, IfNoneMatch, precondition
from onebasis.api.deps import ServicesDep
from onebasis.api.schemas import RollbackBody
from onebasis.api.task_cards import registered, version_card
from onebasis.core.ids import parse_digest

router = APIRouter(tags=["tasks"], dependencies=[ANY_KEY])


@router.get("/v1/tasks/{name}/versions", summary="List the versions of a task")
def list_versions(
    name: str,
    services: ServicesDep,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int | None, Query(ge=1, le=2**31, description="the last generation of the page before")] = None,
) -> dict[str, Any]:
    """Newest first; the first is the current one. Versions from before the task was last deleted are gone."""
    found = services.registry.versions(name, limit + 1, before=after, tenant=caller.tenant)
    page = found[:limit]
    return {
        "object": "list",
        "data": [version_card(version) for version in page],
        "first_id": page[0].generation if page else None,
        "last_id": page[-1].generation if page else None,
        "has_more": len(found) > limit,
    }


@router.post(
    "/v1/tasks/{name}/rollback",
    summary="Go back to an older version",
    dependencies=[REGISTER],
    status_code=201,
    responses={200: {"description": "The task stands at that version already"}},
)
def roll_back(
    name: str,
    body: RollbackBody,
    services: ServicesDep,
    caller: CallerDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """One more version with the older one's bytes and metadata: nothing of the history is lost."""
    demanded = precondition(if_match, if_none_match)
    return registered(services.registry.roll_back(name, parse_digest(body.digest), demanded, author=caller), services)
