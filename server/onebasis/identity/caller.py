"""Who asks: the frozen value that flows from the door of the server down to the stores."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from onebasis.core.errors import InvalidParameter, InvalidTaskName
from onebasis.core.ids import SHARED, parse_task_name
from onebasis.identity.quota import UNLIMITED, Quota


class Scope(StrEnum):
    """What a key may do. None implies another: an admin key that shall also generate has both."""

    GENERATE = "generate"
    REGISTER = "register"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """One authenticated request.

    Args:
        key_id: of the API key; None on a server without keys.
        tenant: whose private tasks it sees and registers; None for the operator, whose tasks are shared with all.
        quota: what the tenant may use; the operator is not limited.
        request_id: for the audit log; None where no HTTP request is behind it.
    """

    key_id: str | None
    tenant: str | None
    scopes: frozenset[Scope]
    quota: Quota = UNLIMITED
    request_id: str | None = None

    @property
    def owner(self) -> str:
        """Of the tasks that it registers: the tenant, or SHARED."""
        return self.tenant or SHARED

    @property
    def share(self) -> str | None:
        """Among whom the engine divides itself: tenants, and the operator's keys one by one."""
        return self.tenant or self.key_id


OPERATOR = Caller(key_id=None, tenant=None, scopes=frozenset({Scope.GENERATE, Scope.REGISTER}))
"""Whoever reaches a server without keys. Not an admin: the first key is made on the command line."""


def parse_tenant(text: str) -> str:
    """Check the spelling of a tenant: as of a task's name. Raises InvalidParameter."""
    try:
        return parse_task_name(text)
    except InvalidTaskName as error:
        raise InvalidParameter("tenant", str(error).replace("task name", "tenant", 1)) from error


def parse_scopes(words: Iterable[str]) -> frozenset[Scope]:
    """At least one scope, each by its name. Raises InvalidParameter."""
    try:
        scopes = frozenset(map(Scope, words))
    except ValueError as error:
        raise InvalidParameter("scopes", f"{error}; allowed are {', '.join(Scope)}") from error
    if not scopes:
        raise InvalidParameter("scopes", f"found none, needs at least one of {', '.join(Scope)}")
    return scopes


def check_grant(scopes: frozenset[Scope], tenant: str | None) -> None:
    """An admin rules over all tenants, so no tenant's key may be one. Raises InvalidParameter."""
    if tenant is not None and Scope.ADMIN in scopes:
        raise InvalidParameter("tenant", f"an admin key belongs to no tenant, found {tenant!r}; make two keys")
