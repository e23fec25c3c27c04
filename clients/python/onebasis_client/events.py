"""Server-sent events, from bytes to typed chunks."""

import json
from collections.abc import Iterator
from typing import Generic, TypeVar

from onebasis_client.decode import decode
from onebasis_client.envelope import error_in
from onebasis_client.errors import ConnectionLost, UnexpectedReply

T = TypeVar("T")


class EventReader(Generic[T]):
    """Reads one stream of `data:` events, each a `kind`, up to `[DONE]`.

    Lines end at a newline alone: text may hold every other separator that Unicode has.

    Args:
        request_id: of the answer, for its errors.
    """

    def __init__(self, kind: type[T], request_id: str | None) -> None:
        self._kind = kind
        self._request_id = request_id
        self._tail = b""
        self.is_done = False

    def feed(self, data: bytes) -> Iterator[T]:
        """The chunks that these bytes complete. Raises what an error event says, or UnexpectedReply."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and not self.is_done:
                yield from self._event(line[5:].strip())

    def end(self) -> None:
        """The body has ended. Raises ConnectionLost if the answer has not."""
        if not self.is_done:
            raise ConnectionLost("the stream ended before its answer did", heard=True)

    def _event(self, data: bytes) -> Iterator[T]:
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            body = json.loads(data)
        except ValueError:
            raise UnexpectedReply(f"an event needs JSON, found {data[:200]!r}") from None
        if isinstance(body, dict) and "error" in body:
            raise error_in(body, request_id=self._request_id)
        yield decode(self._kind, body, "event")
