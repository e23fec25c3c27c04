"""HTTP written by hand, for what no client library would send."""

import contextlib
import json
import re
import select
import socket
from typing import Any

from tests.api.test_errors import CODES


def head(method: str, path: str, *fields: str) -> bytes:
    """A request up to its body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """(status, everything that came until the server closed or fell silent)."""
    data = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while piece := connection.recv(65536):
            data += piece
    return (int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/1.1 ") else 0), data


def exchange(connection: socket.socket, request: bytes) -> tuple[int, bytes]:
    """Send all and read the first answer: (status, its bytes), (0, b"") if the server closes without one.

    If nothing comes, the end of what we send is told, which the server has to take for a request broken off.
    """
    with contextlib.suppress(OSError):  # it may have stopped listening
        connection.sendall(request)
    if not select.select([connection], [], [], 1.0)[0]:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
    data = first_answer(connection)
    return (int(data.split(b" ", 2)[1]) if data else 0), data


def first_answer(connection: socket.socket) -> bytes:
    """One answer, or nothing if the server closes without."""
    data = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while (length := _length(data)) is None or len(data) < length:
            piece = connection.recv(65536)
            if not piece:
                break
            data += piece
    return data[: _length(data)]


def _length(data: bytes) -> int | None:
    """Of the first answer, once its head is here."""
    top, blank, _ = data.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", top)
    return len(top) + len(blank) + int(found[1]) if blank and found else None


def error_of(data: bytes) -> dict[str, Any]:
    """The envelope in a raw answer; its code must have the answer's status."""
    top, _, body = data.partition(b"\r\n\r\n")
    found = json.loads(body)
    assert found.keys() == {"error"}
    error: dict[str, Any] = found["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert int(top.split(b" ", 2)[1]) == CODES[error["code"]]
    return error
