"""The door of the API: who calls, may they, have they any quota left. Closed unless a path is named here as open."""

from contextlib import ExitStack
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from onebasis.api.deps import ServicesDep
from onebasis.api.errors import error_response
from onebasis.core.errors import ServeError
from onebasis.identity import caller as who
from onebasis.identity.authenticator import Authenticator
from onebasis.identity.caller import Caller
from onebasis.identity.errors import InvalidApiKey, PermissionDenied
from onebasis.identity.rates import RateLimits

METRICS_PATH: Final = "/metrics"
OPEN_PATHS: Final = frozenset(
    {"/health", "/health/live", "/health/ready", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"}
)
"""Nothing on them is anybody's. Every other path, one that does not exist too, needs a key when there are keys."""


class Authenticated:
    """Lets a request in as a `Caller`, or answers it: 401, or 429 over the tenant's rates. Its body is not read before.

    The request counts as running until its answer, a stream too, has ended.
    """

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator, rates: RateLimits, protect_metrics: bool) -> None:
        self._app = app
        self._authenticator = authenticator
        self._rates = rates
        self._open_paths = OPEN_PATHS if protect_metrics else OPEN_PATHS | {METRICS_PATH}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        with ExitStack() as running:
            try:
                caller = await self._caller(_bearer(headers), state.get("request_id"))
                if scope["path"] == METRICS_PATH and caller.tenant is not None:
                    raise PermissionDenied("metrics are of all tenants; read them with a key that has no tenant")
                running.enter_context(self._rates.request(caller.tenant, caller.quota))
            except ServeError as error:
                await error_response(error, _closing(error, headers))(scope, receive, send)
                return
            state["caller"] = caller
            await self._app(scope, receive, send)

    async def _caller(self, presented: str, request_id: str | None) -> Caller:
        finding = self._authenticator.recent(presented)
        if finding is None:
            finding = await run_in_threadpool(self._authenticator.look_up, presented)
        return self._authenticator.caller(presented, finding, request_id)


async def _caller(
    request: Request,
    _documented: Annotated[Any, Depends(HTTPBearer(auto_error=False, description="`ob_...`"))],
) -> Caller:
    """What `Authenticated` found out."""
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


async def _is_known(_caller: CallerDep) -> None:
    """Any key will do, since only a request with one comes this far."""


async def _may_generate(caller: CallerDep) -> None:
    _check(caller, who.Scope.GENERATE)


async def _may_register(caller: CallerDep) -> None:
    _check(caller, who.Scope.REGISTER)


async def _may_administrate(caller: CallerDep) -> None:
    _check(caller, who.Scope.ADMIN)


async def _has_tokens(caller: CallerDep, services: ServicesDep) -> None:
    """Raises QuotaExceeded."""
    services.identity.rates.check_tokens(caller.tenant, caller.quota)


ANY_KEY: Final = Depends(_is_known)
GENERATE: Final = Depends(_may_generate)
REGISTER: Final = Depends(_may_register)
ADMIN: Final = Depends(_may_administrate)
TOKENS_LEFT: Final = Depends(_has_tokens)
"""Of every route, in its `dependencies`: which scope the key must have; and that the tenant has tokens to use."""


def _check(caller: Caller, scope: who.Scope) -> None:
    """Raises PermissionDenied."""
    if scope in caller.scopes:
        return
    if caller.key_id is None:
        raise PermissionDenied(f"this server has no keys yet; make one with 'onebasis keys create --scope {scope}'")
    found = ", ".join(sorted(caller.scopes))
    raise PermissionDenied(f"needs a key with scope {scope}, found {found}; ask an admin for another key")


def _bearer(headers: Headers) -> str:
    """The key of the Authorization header; "" for none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _closing(error: ServeError, headers: Headers) -> dict[str, str]:
    """A stranger's body is not read, not even to throw it away."""
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    return {"Connection": "close"} if isinstance(error, InvalidApiKey) and has_body else {}
