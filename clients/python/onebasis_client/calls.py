"""What a call sends and how its answer is read: values only, the same for both clients. No I/O here."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

from onebasis_client.decode import decode
from onebasis_client.errors import UnexpectedReply

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Cursor_co = TypeVar("Cursor_co", covariant=True)

OnSent = Callable[[int], None]
"""Told the bytes of the body sent so far; begins again at 0 when the request is sent again."""


class Stage(IntEnum):
    """How far a failed attempt may have come. The further, the fewer requests may be sent again."""

    NOT_RUN = 0  # it never arrived, or the server refused to begin
    NOT_HEARD = 1  # it may have run; nothing of an answer came
    HEARD = 2  # part of an answer came
    FINAL = 3  # sending it again makes nothing better


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Args:
        path: escaped already.
        retry_through: the furthest stage of failure after which it is safe to send it again.
        timeout_s: in place of the client's.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    on_sent: OnSent | None = None
    retry_through: Stage = Stage.HEARD
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The parsed body. Raises UnexpectedReply."""
        try:
            return json.loads(self.content)
        except ValueError:
            raise UnexpectedReply(f"HTTP {self.status}, needs JSON, found {self.content[:200]!r}") from None

    def decoded(self, kind: type[T]) -> T:
        """The body as a dataclass. Raises UnexpectedReply."""
        return decode(kind, self.json())


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """A request whose answer is read whole."""

    request: Request
    parse: Callable[[Reply], T_co]


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """A request whose answer is server-sent events, each of them a `kind`."""

    request: Request
    kind: type[T]


class Page(Protocol[T_co, Cursor_co]):
    """Part of a list, and where the next part begins."""

    @property
    def data(self) -> tuple[T_co, ...]: ...

    @property
    def last_id(self) -> Cursor_co | None: ...

    @property
    def has_more(self) -> bool: ...


def escaped(segment: str) -> str:
    """One segment of a path, dots too: `..` must reach the server as a name."""
    return quote(segment, safe="", errors="replace").replace(".", "%2E")


def page_params(limit: int, after: str | int | None) -> dict[str, str]:
    """Of the page that follows the id `after`, or of the first."""
    return {"limit": str(limit)} | ({} if after is None else {"after": str(after)})


def json_request(
    method: str, path: str, body: Mapping[str, Any], *, retry_through: Stage, headers: Mapping[str, str] | None = None
) -> Request:
    """A request with a JSON body, in which the mapping `blend` becomes the list that the server takes."""
    if "blend" in body:
        items = [{"task": task, "weight": weight} for task, weight in body["blend"].items()]
        body = {**body, "blend": items}
    return Request(
        method,
        path,
        headers={"Content-Type": "application/json", **(headers or {})},
        content=json.dumps(body, separators=(",", ":")).encode(),
        retry_through=retry_through,
    )
