"""Weighted sums of tasks: in one request, or stored as a task of their own."""

from collections.abc import Sequence

from fastapi import APIRouter, Response

from onebasis.api.auth import REGISTER, CallerDep
from onebasis.api.conditions import IfMatch, IfNoneMatch, precondition
from onebasis.api.deps import Services, ServicesDep
from onebasis.api.schemas import BlendItem, GenerationBody, StoreBlendBody
from onebasis.api.task_cards import registered
from onebasis.coefficients.blend import blend_file
from onebasis.coefficients.metadata import check_metadata
from onebasis.core.errors import InvalidParameter, NoBasis
from onebasis.core.request import ResolvedTask
from onebasis.identity.audit import Action
from onebasis.identity.caller import Caller

router = APIRouter(tags=["tasks"], dependencies=[REGISTER])


@router.post(
    "/v1/tasks/{name}/blend",
    summary="Store a weighted sum of tasks as a task",
    status_code=201,
    responses={200: {"description": "The task stands at this sum already"}},
)
def store_blend(
    name: str,
    body: StoreBlendBody,
    services: ServicesDep,
    caller: CallerDep,
    if_match: IfMatch = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The sum of the tasks as they stand now, as a coefficient file like any other; they may change afterwards."""
    if services.basis is None:
        raise NoBasis
    demanded = precondition(if_match, if_none_match)
    noted = None if body.metadata is None else check_metadata("metadata", body.metadata)
    data = blend_file(services.blends.resolve(_weights(body.blend), caller.tenant), services.basis, name)
    registration = services.registry.register(
        name, data, author=caller, precondition=demanded, metadata=noted, action=Action.TASK_BLEND
    )
    return registered(registration, services)


def select_task(body: GenerationBody, services: Services, caller: Caller) -> ResolvedTask | None:
    """The task that a generation names, by `model` or `blend`; None for the base alone.

    Raises:
        ModelNotFound, TaskUnusable, StoreUnavailable: as of the registry.
        InvalidParameter: a blend of something that can't be blended, or `model` names another task beside it.
    """
    if body.blend is None:
        return services.registry.resolve(body.model, caller.tenant)
    if body.model != services.base_name:
        raise InvalidParameter("model", f"with blend it must be the base, {services.base_name!r}, found {body.model!r}")
    return services.blends.resolve(_weights(body.blend), caller.tenant)


def _weights(items: Sequence[BlendItem]) -> list[tuple[str, float]]:
    return [(item.task, float(item.weight)) for item in items]
