"""What the methods for admins send."""

from collections.abc import Sequence

from onebasis_client.access import AuditPage, KeyPage, Limits, NewKey, Quota, Scope
from onebasis_client.calls import Call, Request, Stage, escaped, json_request, page_params


def create_key(label: str, scopes: Sequence[Scope], tenant: str | None, expires_at: int | None) -> Call[NewKey]:
    """Not sent again after a lost answer: the first key would stay, and nobody would have it."""
    body = {"label": label, "scopes": list(scopes), "tenant": tenant, "expires_at": expires_at}
    return Call(
        json_request("POST", "/v1/keys", body, retry_through=Stage.NOT_RUN), lambda reply: reply.decoded(NewKey)
    )


def keys_page(limit: int, after: str | None) -> Call[KeyPage]:
    return Call(Request("GET", "/v1/keys", params=page_params(limit, after)), lambda reply: reply.decoded(KeyPage))


def revoke_key(key_id: str) -> Call[None]:
    return Call(Request("DELETE", f"/v1/keys/{escaped(key_id)}"), lambda _: None)


def quota(tenant: str) -> Call[Quota]:
    return Call(Request("GET", _quota_path(tenant)), lambda reply: reply.decoded(Quota))


def set_quota(tenant: str, limits: Limits) -> Call[Quota]:
    request = json_request("PUT", _quota_path(tenant), limits, retry_through=Stage.HEARD)
    return Call(request, lambda reply: reply.decoded(Quota))


def audit_page(limit: int, after: int) -> Call[AuditPage]:
    request = Request("GET", "/v1/audit", params=page_params(limit, after))
    return Call(request, lambda reply: reply.decoded(AuditPage))


def _quota_path(tenant: str) -> str:
    return f"/v1/tenants/{escaped(tenant)}/quota"
