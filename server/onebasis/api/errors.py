"""From the error tree to HTTP: one table of statuses, one envelope for every non-2xx of every route."""

import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from onebasis.core import errors
from onebasis.identity import errors as identity_errors

CLIENT_CLOSED_REQUEST: Final = 499  # nginx's word for it; nobody is there to read it

STATUSES: Final[Mapping[type[errors.ServeError], int]] = MappingProxyType(
    {
        errors.ServeError: 500,
        errors.RequestError: 400,
        errors.ModelNotFound: 404,
        errors.TaskNotFound: 404,
        errors.VersionNotFound: 404,
        errors.RouteNotFound: 404,
        errors.MethodNotAllowed: 405,
        errors.RequestTimeout: 408,
        errors.PreconditionFailed: 412,
        errors.BodyTooLarge: 413,
        errors.HeadersTooLarge: 431,
        errors.CapacityError: 503,
        errors.QueueFull: 429,
        errors.TenantQueueFull: 429,
        errors.ResidualMemoryFull: 429,
        errors.DeadlineExceeded: 504,
        identity_errors.InvalidApiKey: 401,
        identity_errors.PermissionDenied: 403,
        identity_errors.KeyNotFound: 404,
        identity_errors.QuotaExceeded: 429,
    }
)
"""Status of each class; a class that is not listed has its nearest listed ancestor's."""


_TOO_MANY: Final = (
    errors.QueueFull,
    errors.TenantQueueFull,
    errors.ResidualMemoryFull,
    identity_errors.QuotaExceeded,
)


class ErrorDetail(BaseModel):
    """`code` is stable; `param` names the field, header or query parameter that is at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every failure."""

    error: ErrorDetail


def status_of(error: errors.ServeError) -> int:
    """HTTP status of an error."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def envelope(error: Exception) -> dict[str, Any]:
    """An ErrorBody. What is not ours shows no detail."""
    if not isinstance(error, errors.ServeError):
        error = errors.ServeError("the server failed on this request; it is in its log")
    detail = ErrorDetail(message=str(error), type=_type_of(error), param=error.param, code=error.code)
    return ErrorBody(error=detail).model_dump()


def error_response(error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The whole answer to a failure: status, envelope, and what the client should do about it as headers."""
    all_headers = dict(headers or {})
    if isinstance(error, errors.CapacityError):
        all_headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, errors.DeadlineExceeded):
        all_headers["X-Should-Retry"] = "false"  # OpenAI's SDK would send it again, at once, for each 5xx
    if isinstance(error, errors.BodyTooLarge | errors.Draining):
        all_headers["Connection"] = "close"  # the rest of a body is not read; a client of a draining server moves on
    if isinstance(error, identity_errors.InvalidApiKey):
        all_headers["WWW-Authenticate"] = 'Bearer realm="onebasis"' + (', error="invalid_token"' if error.given else "")
    status = status_of(error) if isinstance(error, errors.ServeError) else 500
    return JSONResponse(envelope(error), status_code=status, headers=all_headers)


def install_error_handlers(app: FastAPI) -> None:
    """Answer everything that a route raises on purpose with the envelope; bugs are middleware.Observed's."""

    @app.exception_handler(errors.ServeError)
    async def on_known(_: Request, error: errors.ServeError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(_from_http(request, error), headers=error.headers)

    @app.exception_handler(ClientDisconnect)
    async def on_gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


def from_validation(details: Any) -> errors.RequestError:
    """The first of pydantic's complaints, as one of our errors."""
    detail = details[0]
    # The location begins with where the value was (body, query, header). Union members appear in it as their type
    # names; a client knows its own fields only.
    path = [str(part) for part in detail["loc"][1:]]
    if detail["type"] == "json_invalid":
        return errors.InvalidJson("the body is not valid JSON; send one JSON object")
    if not path:
        return errors.InvalidJson("needs one JSON object, with Content-Type: application/json")
    if detail["type"] == "extra_forbidden":
        return errors.UnsupportedParameter(".".join(path))
    param = path[0]
    if detail["type"] == "missing":
        return errors.InvalidParameter(param, "is required and missing")
    shown = reprlib.repr(detail.get("input"))[:80]  # the input may have megabytes
    return errors.InvalidParameter(param, f"{detail['msg']}, found {shown}")


def _from_http(request: Request, error: HTTPException) -> errors.ServeError:
    """Starlette's own refusals: no such route or method, a body that it can't read (the cause may be one of ours)."""
    if isinstance(error.__cause__, errors.ServeError):
        return error.__cause__
    if error.status_code == 404:
        return errors.RouteNotFound(f"no route {request.url.path!r}; GET /openapi.json lists them")
    if error.status_code == 405:
        return errors.MethodNotAllowed(f"{request.method} is not allowed on {request.url.path}")
    if error.status_code == 400:
        return errors.InvalidJson("the body can't be read as JSON in UTF-8; send one JSON object")
    return errors.RequestError(str(error.detail))


def _type_of(error: errors.ServeError) -> str:
    """OpenAI's coarse kind of error."""
    if isinstance(error, _TOO_MANY):
        return "rate_limit_error"
    if isinstance(error, identity_errors.InvalidApiKey):
        return "authentication_error"
    if isinstance(error, identity_errors.PermissionDenied):
        return "permission_error"
    if isinstance(error, errors.RequestError):
        return "invalid_request_error"
    return "server_error"
