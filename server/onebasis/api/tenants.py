"""Quotas and the audit log over HTTP, for admins."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field

from onebasis.api.auth import ADMIN, CallerDep
from onebasis.api.deps import ServicesDep
from onebasis.api.json_object import JsonObject
from onebasis.api.keys import Limit
from onebasis.identity.caller import parse_tenant
from onebasis.identity.quota import Quota

router = APIRouter(tags=["tenants"], dependencies=[ADMIN])

Most = Annotated[int, Field(ge=0, lt=2**53)]


class QuotaBody(JsonObject):
    """PUT /v1/tenants/{tenant}/quota: all limits of the tenant. One that is absent or null does not limit."""

    tasks: Most | None = None
    bytes: Most | None = None
    requests_per_minute: Most | None = None
    tokens_per_minute: Most | None = None
    concurrent_requests: Most | None = None


@router.get("/v1/tenants/{tenant}/quota", summary="Show a tenant's quota")
def show_quota(tenant: str, services: ServicesDep) -> dict[str, Any]:
    """Its own, or the server's default."""
    return _card(tenant, services.identity.quotas.of(parse_tenant(tenant)))


@router.put("/v1/tenants/{tenant}/quota", summary="Set a tenant's quota")
def put_quota(tenant: str, body: QuotaBody, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """Counts within 2 s, on every replica. What is registered beyond a lowered limit stays."""
    quota = Quota(**body.model_dump())
    services.identity.quotas.put(caller, tenant, quota)
    return _card(tenant, quota)


@router.get("/v1/audit", summary="List changes, oldest first")
def list_audit(
    services: ServicesDep,
    limit: Limit = 100,
    after: Annotated[int, Query(ge=0, lt=2**53, description="the last id of the page before")] = 0,
) -> dict[str, Any]:
    """Every change of a task, a key or a quota. Ask again with `after` to follow it: nothing is skipped."""
    found = services.identity.audit.page(limit + 1, after)
    page = found[:limit]
    return {
        "object": "list",
        "data": [{"object": "audit.entry"} | asdict(entry) for entry in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > limit,
    }


def _card(tenant: str, quota: Quota) -> dict[str, Any]:
    return {"object": "quota", "tenant": tenant} | asdict(quota)
