"""What the registry methods send. After a lost answer a write is sent again only where twice means the same as once."""

import base64
import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import quote

from onebasis_client.calls import Call, OnSent, Reply, Request, Stage
from onebasis_client.errors import UnexpectedReply
from onebasis_client.tasks import Basis, Registration, Task, TaskPage

_READY_TIMEOUT_S: Final = 2.0  # a server that is busy starting may accept and say nothing


def register(
    name: str, file: bytes | Path, *, if_match: str | None, if_absent: bool, on_sent: OnSent | None
) -> Call[Registration]:
    content = file.read_bytes() if isinstance(file, Path) else file
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    conditions = _condition(if_match) | ({"If-None-Match": "*"} if if_absent else {})
    request = Request(
        "PUT",
        _path(name),
        headers={"Content-Type": "application/octet-stream", "Content-Digest": f"sha-256=:{digest}:"} | conditions,
        content=content,
        on_sent=on_sent,
        retry_through=_unconditional(conditions),
    )
    return Call(request, lambda reply: Registration(reply.decoded(Task), created=reply.status == 201))


def page(limit: int, after: str | None) -> Call[TaskPage]:
    params = {"limit": str(limit)} | ({} if after is None else {"after": after})
    return Call(Request("GET", "/v1/tasks", params=params), lambda reply: reply.decoded(TaskPage))


def show(name: str) -> Call[Task]:
    return Call(Request("GET", _path(name)), lambda reply: reply.decoded(Task))


def content(name: str) -> Call[bytes]:
    return Call(Request("GET", _path(name, "content")), _checked_content)


def delete(name: str, *, if_match: str | None) -> Call[None]:
    request = Request("DELETE", _path(name), headers=_condition(if_match), retry_through=Stage.NOT_RUN)
    return Call(request, lambda _: None)


def basis() -> Call[Basis]:
    return Call(Request("GET", "/v1/basis"), lambda reply: reply.decoded(Basis))


def ready() -> Call[None]:
    return Call(Request("GET", "/health/ready", timeout_s=_READY_TIMEOUT_S), lambda _: None)


def _path(name: str, *rest: str) -> str:
    """Every part one segment, dots too: `..` must reach the server as a name."""
    escaped = quote(name, safe="").replace(".", "%2E")
    return "/".join(("/v1/tasks", escaped, *rest))


def _condition(if_match: str | None) -> dict[str, str]:
    return {} if if_match is None else {"If-Match": f'"{if_match}"'}


def _unconditional(conditions: dict[str, str]) -> Stage:
    """After a lost answer, a conditional write sent again would be refused for its own success."""
    return Stage.NOT_RUN if conditions else Stage.HEARD


def _checked_content(reply: Reply) -> bytes:
    """The bytes that the ETag promises."""
    promised = reply.headers.get("etag", "").strip('"')
    found = f"sha256:{hashlib.sha256(reply.content).hexdigest()}"
    if found != promised:
        raise UnexpectedReply(f"the ETag promises {promised or 'nothing'}, the bytes are {found}")
    return reply.content
