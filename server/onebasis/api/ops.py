"""Routes for operators: health and metrics."""

from fastapi import APIRouter, Response

from onebasis.api.deps import ServicesDep
from onebasis.api.errors import ErrorBody
from onebasis.core.errors import Draining, EngineStopped

router = APIRouter(tags=["operation"])


@router.get("/health/live", summary="Is the process worth keeping?")
@router.get("/health", include_in_schema=False)
async def live(services: ServicesDep) -> dict[str, str]:
    """200 while the engine can answer; load does not matter, so it waits for no thread of the pool."""
    if not services.engine.is_alive:
        raise EngineStopped
    return {"status": "ok"}


@router.get("/health/ready", summary="May traffic come?", responses={503: {"model": ErrorBody}})
async def ready(services: ServicesDep) -> dict[str, str]:
    """200 until the server shuts down: model, basis and registry are loaded before the port opens."""
    if services.drain.is_leaving:
        raise Draining
    if not services.engine.is_alive:
        raise EngineStopped
    return {"status": "ready"}


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(services: ServicesDep) -> Response:
    """Text exposition; O(1) in the number of tasks. On the loop: a thread of the pool costs more than the rendering."""
    content, media_type = services.metrics.render()
    return Response(content, headers={"Content-Type": media_type})
