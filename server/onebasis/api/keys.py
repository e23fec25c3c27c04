"""API keys over HTTP, for admins."""

from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import Field

from onebasis.api.auth import ADMIN, CallerDep
from onebasis.api.deps import ServicesDep
from onebasis.api.json_object import JsonObject
from onebasis.identity.caller import parse_scopes
from onebasis.identity.keys import ApiKey

router = APIRouter(tags=["keys"], dependencies=[ADMIN])

Limit = Annotated[int, Query(ge=1, le=1000)]
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999; beyond it are milliseconds that were meant to be seconds


class KeyBody(JsonObject):
    """POST /v1/keys. Without a tenant it is the operator's key; without `expires_at` it does not expire."""

    label: Annotated[str, Field(min_length=1, max_length=256)]
    scopes: Annotated[list[str], Field(min_length=1, max_length=3, description="of generate, register, admin")]
    tenant: Annotated[str, Field(max_length=128)] | None = None
    expires_at: Annotated[int, Field(ge=0, le=_LAST_SECOND, description="Unix second")] | None = None


@router.post("/v1/keys", summary="Make a key", status_code=201)
def create_key(body: KeyBody, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The answer is the only place where `key` is ever shown."""
    key, secret = services.identity.keys.create(
        caller, label=body.label, scopes=parse_scopes(body.scopes), tenant=body.tenant, expires_at=body.expires_at
    )
    return _card(key) | {"key": secret}


@router.get("/v1/keys", summary="List keys by id")
def list_keys(
    services: ServicesDep,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=64, description="the last id of the page before")] = None,
) -> dict[str, Any]:
    """Revoked and expired ones too; never the keys themselves."""
    found = services.identity.keys.page(limit + 1, after)
    page = found[:limit]
    return {
        "object": "list",
        "data": [_card(key) for key in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > limit,
    }


@router.delete("/v1/keys/{key_id}", summary="Revoke a key")
def revoke_key(key_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """It opens nothing within 2 s, on every replica; what it has begun goes on. Revoking again changes nothing."""
    services.identity.keys.revoke(caller, key_id)
    return {"id": key_id, "object": "key.revoked", "revoked": True}


def _card(key: ApiKey) -> dict[str, Any]:
    shown = asdict(key)
    del shown["key_hash"]
    return shown | {"object": "key", "scopes": sorted(key.scopes)}
