"""What the registry methods send. After a lost answer a write is sent again only where twice means the same as once."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from onebasis_client.calls import Call, OnSent, Reply, Request, Stage, escaped, json_request, page_params
from onebasis_client.errors import UnexpectedReply
from onebasis_client.options import Blend
from onebasis_client.tasks import Basis, Registration, Task, TaskPage, VersionPage

_READY_TIMEOUT_S: Final = 2.0  # a server that is busy starting may accept and say nothing


def register(
    name: str,
    file: bytes | Path,
    *,
    metadata: Mapping[str, str] | None,
    if_match: str | None,
    if_absent: bool,
    on_sent: OnSent | None,
) -> Call[Registration]:
    content = file.read_bytes() if isinstance(file, Path) else file
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    conditions = _conditions(if_match, if_absent=if_absent)
    noted = {} if metadata is None else {"OneBasis-Metadata": json.dumps(dict(metadata))}
    request = Request(
        "PUT",
        _path(name),
        headers={"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"}
        | noted
        | conditions,
        content=content,
        on_sent=on_sent,
        retry_through=_repeatable(conditions),
    )
    return Call(request, _registration)


def roll_back(name: str, digest: str, *, if_match: str | None) -> Call[Registration]:
    conditions = _conditions(if_match)
    body = {"digest": digest}
    request = json_request(
        "POST", _path(name, "rollback"), body, retry_through=_repeatable(conditions), headers=conditions
    )
    return Call(request, _registration)


def store_blend(
    name: str, blend: Blend, *, metadata: Mapping[str, str] | None, if_match: str | None, if_absent: bool
) -> Call[Registration]:
    conditions = _conditions(if_match, if_absent=if_absent)
    body = {"blend": blend} | ({} if metadata is None else {"metadata": dict(metadata)})
    request = json_request(
        "POST", _path(name, "blend"), body, retry_through=_repeatable(conditions), headers=conditions
    )
    return Call(request, _registration)


def page(limit: int, after: str | None) -> Call[TaskPage]:
    return Call(Request("GET", "/v1/tasks", params=page_params(limit, after)), lambda reply: reply.decoded(TaskPage))


def show(name: str) -> Call[Task]:
    return Call(Request("GET", _path(name)), lambda reply: reply.decoded(Task))


def show_if_changed(name: str, digest: str) -> Call[Task | None]:
    request = Request("GET", _path(name), headers={"If-None-Match": f'"{digest}"'})
    return Call(request, lambda reply: None if reply.status == 304 else reply.decoded(Task))


def content(name: str, digest: str | None) -> Call[bytes]:
    params = {} if digest is None else {"digest": digest}
    return Call(Request("GET", _path(name, "content"), params=params), _checked_content)


def versions_page(name: str, limit: int, after: int | None) -> Call[VersionPage]:
    request = Request("GET", _path(name, "versions"), params=page_params(limit, after))
    return Call(request, lambda reply: reply.decoded(VersionPage))


def delete(name: str, *, if_match: str | None) -> Call[None]:
    request = Request("DELETE", _path(name), headers=_conditions(if_match), retry_through=Stage.NOT_RUN)
    return Call(request, lambda _: None)


def basis() -> Call[Basis]:
    return Call(Request("GET", "/v1/basis"), lambda reply: reply.decoded(Basis))


def basis_content() -> Call[bytes]:
    return Call(Request("GET", "/v1/basis/content"), _checked_content)


def ready() -> Call[None]:
    return Call(Request("GET", "/health/ready", timeout_s=_READY_TIMEOUT_S), lambda _: None)


def _path(name: str, *rest: str) -> str:
    return "/".join(("/v1/tasks", escaped(name), *rest))


def _conditions(if_match: str | None, *, if_absent: bool = False) -> dict[str, str]:
    match = {} if if_match is None else {"If-Match": f'"{if_match}"'}
    return match | ({"If-None-Match": "*"} if if_absent else {})


def _repeatable(conditions: Mapping[str, str]) -> Stage:
    """After a lost answer, a conditional write sent again would be refused for its own success."""
    return Stage.NOT_RUN if conditions else Stage.HEARD


def _registration(reply: Reply) -> Registration:
    return Registration(reply.decoded(Task), created=reply.status == 201)


def _checked_content(reply: Reply) -> bytes:
    """The bytes that the ETag promises."""
    promised = reply.headers.get("etag", "").strip('"')
    found = f"sha256:{hashlib.sha256(reply.content).hexdigest()}"
    if found != promised:
        raise UnexpectedReply(f"the ETag promises {promised or 'nothing'}, the bytes are {found}")
    return reply.content
