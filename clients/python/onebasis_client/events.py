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
    """

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._tail = b""
        self._is_done = False

    def feed(self, data: bytes) -> Iterator[T]:
        """The chunks that these bytes complete. Raises what an error event says, or UnexpectedReply."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and not self._is_done:
                yield from self._event(line[5:].strip())

    def end(self) -> None:
        """The body has ended. Raises ConnectionLost if the answer has not."""
        if not self._is_done:
            raise ConnectionLost("the stream ended before its answer did", heard=True)

    def _event(self, data: bytes) -> Iterator[T]:
        if data == b"[DONE]":
            self._is_done = True
            return
        try:
            body = json.loads(data)
        except ValueError:
            raise UnexpectedReply(f"an event needs JSON, found {data[:200]!r}") from None
        if isinstance(body, dict) and "error" in body:
            raise error_in(body)
        yield decode(self._kind, body, "event")
