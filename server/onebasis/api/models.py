"""GET /v1/models: the base and every task, in OpenAI's form."""

from typing import Any

from fastapi import APIRouter

from onebasis.api.auth import ANY_KEY, CallerDep
from onebasis.api.deps import Services, ServicesDep
from onebasis.coefficients.catalog import RegisteredTask
from onebasis.core.errors import ModelNotFound, TaskNotFound

router = APIRouter(tags=["models"], dependencies=[ANY_KEY])
_PAGE = 1000


@router.get("/v1/models", summary="List what `model` may name")
def list_models(services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The base first, then the tasks that can serve, by name."""
    cards = [_base_card(services)]
    after: str | None = None
    while True:
        page = services.registry.page(_PAGE, after, tenant=caller.tenant)
        cards += [_task_card(task, services) for task in page.tasks if task.state == "ready"]
        if not page.has_more or not page.tasks:
            return {"object": "list", "data": cards}
        after = page.tasks[-1].name


@router.get("/v1/models/{name:path}", summary="One model card")
def show_model(name: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The card of the base or of a task."""
    if name == services.base_name:
        return _base_card(services)
    try:
        return _task_card(services.registry.get(name, caller.tenant), services)
    except TaskNotFound as error:
        raise ModelNotFound(name) from error


def _base_card(services: Services) -> dict[str, Any]:
    return _card(services, services.base_name, services.started_at, parent=None)


def _task_card(task: RegisteredTask, services: Services) -> dict[str, Any]:
    return _card(services, task.name, task.created_at, parent=services.base_name) | {"digest": task.digest}


def _card(services: Services, name: str, created: int, *, parent: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "onebasis",
        "root": services.base_name,
        "parent": parent,
        "max_model_len": services.engine.limits.max_model_len,
    }
