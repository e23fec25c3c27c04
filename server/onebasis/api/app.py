"""The ASGI application, from its parts."""

from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from onebasis import __version__
from onebasis.api import (
    basis,
    blends,
    chat,
    completions,
    keys,
    lora_adapters,
    models,
    ops,
    tasks,
    tenants,
    tokenize,
    versions,
)
from onebasis.api.auth import Authenticated
from onebasis.api.deps import Services
from onebasis.api.drain import DrainGate
from onebasis.api.errors import install_error_handlers
from onebasis.api.middleware import BodyLimit, HeaderLimit, Observed, Traced
from onebasis.api.unread_body import UnreadBody

_CORS_ANSWER_HEADERS: Final = ("ETag", "Location", "Retry-After", "X-Request-Id", "X-Should-Retry")
_FAILURE: Final = {
    "description": "Any failure",  # in JSON, also where the route itself answers in something else
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
}


def create_app(services: Services) -> FastAPI:
    """All routes over these services."""
    app = FastAPI(
        title="onebasis",
        version=__version__,
        summary="One base model, one shared basis, kilobyte coefficients per task.",
        redirect_slashes=False,
    )
    app.state.services = services
    modules = [completions, chat, tokenize, models, tasks, versions, blends, basis, keys, tenants, ops]
    if services.lora_root is not None:
        modules.append(lora_adapters)
    for module in modules:
        app.include_router(module.router, responses={"default": _FAILURE})
    install_error_handlers(app)
    _wrap(app, services)
    return app


def _wrap(app: FastAPI, services: Services) -> None:
    """What every request goes through, innermost first."""
    edge, identity = services.edge, services.identity
    app.add_middleware(
        Authenticated,
        authenticator=identity.authenticator,
        rates=identity.rates,
        protect_metrics=edge.protect_metrics,
    )
    app.add_middleware(BodyLimit, upload_bytes=edge.max_body_bytes, json_bytes=edge.max_json_bytes)
    app.add_middleware(HeaderLimit, limit_bytes=edge.max_header_bytes)
    app.add_middleware(DrainGate, drain=services.drain)
    if edge.cors_origin:  # outside of authentication: a browser asks for leave without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=edge.cors_origin,
            allow_methods=("GET", "POST", "PUT", "DELETE"),
            allow_headers=("*",),  # OpenAI's SDK for browsers sends a dozen of its own; no cookie is accepted
            expose_headers=_CORS_ANSWER_HEADERS,
        )
    if services.traces is not None:
        app.add_middleware(Traced, traces=services.traces)
    app.add_middleware(UnreadBody)
    app.add_middleware(Observed, metrics=services.metrics)  # outermost: it sees every answer
