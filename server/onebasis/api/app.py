"""The ASGI application, from its parts."""

from fastapi import FastAPI

from onebasis import __version__
from onebasis.api import basis, blends, chat, completions, lora_adapters, models, ops, tasks, tokenize, versions
from onebasis.api.deps import Services
from onebasis.api.drain import DrainGate
from onebasis.api.errors import ErrorBody, install_error_handlers
from onebasis.api.middleware import BodyLimit, Observed, Traced


def create_app(services: Services) -> FastAPI:
    """All routes over these services."""
    app = FastAPI(
        title="onebasis",
        version=__version__,
        summary="One base model, one shared basis, kilobyte coefficients per task.",
        redirect_slashes=False,
    )
    app.state.services = services
    modules = [completions, chat, tokenize, models, tasks, versions, blends, basis, ops]
    if services.lora_root is not None:
        modules.append(lora_adapters)
    for module in modules:
        app.include_router(module.router, responses={"default": {"model": ErrorBody, "description": "Any failure"}})
    install_error_handlers(app)
    app.add_middleware(BodyLimit, limit_bytes=services.max_body_bytes)
    app.add_middleware(DrainGate, drain=services.drain)
    if services.traces is not None:
        app.add_middleware(Traced, traces=services.traces)
    app.add_middleware(Observed, metrics=services.metrics)  # outermost: it sees every answer
    return app
