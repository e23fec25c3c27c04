"""From the error tree to HTTP: one table of statuses, one envelope for every non-2xx of every route."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onebasis.core import errors

_log = logging.getLogger(__name__)

STATUSES: Final[Mapping[type[errors.ServeError], int]] = MappingProxyType(
    {
        errors.ServeError: 500,
        errors.RequestError: 400,
        errors.ModelNotFound: 404,
        errors.TaskNotFound: 404,
        errors.RouteNotFound: 404,
        errors.MethodNotAllowed: 405,
        errors.PreconditionFailed: 412,
        errors.BodyTooLarge: 413,
        errors.CapacityError: 503,
        errors.QueueFull: 429,
    }
)
"""Status of each class; a class that is not listed has its nearest listed ancestor's."""


def status_of(error: errors.ServeError) -> int:
    """HTTP status of an error."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def envelope(error: Exception) -> dict[str, Any]:
    """The body of every failure: {"error": {message, type, param, code}}. What is not ours shows no detail."""
    if not isinstance(error, errors.ServeError):
        error = errors.ServeError("the server failed on this request; it is in its log")
    return {
        "error": {
            "message": str(error),
            "type": _type_of(error),
            "param": error.param,
            "code": error.code,
        }
    }


def install_error_handlers(app: FastAPI) -> None:
    """Answer everything that a route can raise with the envelope."""

    @app.exception_handler(errors.ServeError)
    async def on_known(_: Request, error: errors.ServeError) -> JSONResponse:
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation(_: Request, error: RequestValidationError) -> JSONResponse:
        return _response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return _response(_from_http(request, error), headers=error.headers)

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        _log.error("a request failed with a bug of ours", exc_info=error)
        return JSONResponse(envelope(error), status_code=500)


def from_validation(details: Any) -> errors.RequestError:
    """The first of pydantic's complaints, as one of our errors."""
    detail = details[0]
    # Union members appear in the location as their type names; a client knows its own fields only.
    path = [str(part) for part in detail["loc"] if part != "body"]
    if detail["type"] == "json_invalid":
        return errors.InvalidJson("the body is not valid JSON; send one JSON object")
    if not path:
        return errors.InvalidJson("needs one JSON object, with Content-Type: application/json")
    if detail["type"] == "extra_forbidden":
        return errors.UnsupportedParameter(".".join(path))
    param = path[0]
    if detail["type"] == "missing":
        return errors.InvalidParameter(param, "is required and missing")
    found = repr(detail.get("input"))
    shown = found if len(found) <= 80 else found[:77] + "..."
    return errors.InvalidParameter(param, f"{detail['msg']}, found {shown}")


def _from_http(request: Request, error: HTTPException) -> errors.ServeError:
    """Starlette's own refusals: no such route or method, a body that it can't read (the cause may be one of ours)."""
    if isinstance(error.__cause__, errors.ServeError):
        return error.__cause__
    if error.status_code == 404:
        return errors.RouteNotFound(f"no route {request.url.path!r}; GET /openapi.json lists them")
    if error.status_code == 405:
        return errors.MethodNotAllowed(f"{request.method} is not allowed on {request.url.path}")
    return errors.RequestError(str(error.detail))


def _response(error: errors.ServeError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    all_headers = dict(headers or {})
    if isinstance(error, errors.CapacityError):
        all_headers["Retry-After"] = str(error.retry_after_s)
    return JSONResponse(envelope(error), status_code=status_of(error), headers=all_headers)


def _type_of(error: errors.ServeError) -> str:
    """OpenAI's coarse kind of error."""
    if isinstance(error, errors.QueueFull):
        return "rate_limit_error"
    if isinstance(error, errors.RequestError):
        return "invalid_request_error"
    return "server_error"
