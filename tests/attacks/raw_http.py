"""HTTP written by hand, for what no client library would send."""

import contextlib
import json
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
    """Send all, say that no more comes, and read the answer. A server that has stopped listening is no failure here."""
    with contextlib.suppress(OSError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
    return read_answer(connection)


def error_of(data: bytes) -> dict[str, Any]:
    """The envelope in a raw answer, with a code that has the answer's status. Its last answer, if it has several."""
    head_text, _, body = data[data.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    found = json.loads(body)
    assert found.keys() == {"error"}
    error: dict[str, Any] = found["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert int(head_text.split(b" ", 2)[1]) == CODES[error["code"]]
    return error
