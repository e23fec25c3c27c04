"""A small real HTTP server that fails as told, one step of the script for each request."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float
    client_port: int


@dataclass
class FlakyServer:
    """Answers request number n with `script[n]`, the last step again and again."""

    url: str
    script: list[Callable[[BaseHTTPRequestHandler], None]]
    seen: list[Seen] = field(default_factory=list)

    def pauses_s(self) -> list[float]:
        times = [request.at_s for request in self.seen]
        return [later - earlier for earlier, later in pairwise(times)]


@contextmanager
def flaky_server(*script: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[FlakyServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.seen.append(Seen(self.command, self.path, headers, body, time.monotonic(), self.client_address[1]))
            server.script[min(len(server.seen), len(server.script)) - 1](self)

        do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815  (the library's names)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        server = FlakyServer(f"http://127.0.0.1:{listener.server_port}", list(script))
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


def answer(status: int, body: Any = None, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A whole answer; bytes as they are, anything else as JSON. Header names are spelt with underscores."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def step(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return step


def refusal(status: int, code: str, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """The envelope of an error."""
    error = {"message": f"told to say {code}", "type": "server_error", "param": None, "code": code}
    return answer(status, {"error": error}, **headers)


def reset(handler: BaseHTTPRequestHandler) -> None:
    """The connection breaks before anything of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def cut_after(content: bytes, media_type: str = "application/json") -> Callable[[BaseHTTPRequestHandler], None]:
    """The connection breaks in the middle of the answer."""

    def step(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", media_type)
        handler.send_header("Content-Length", str(len(content) + 1000))
        handler.end_headers()
        handler.wfile.write(content)
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    return step


def events(*contents: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A stream of server-sent events that ends as a whole."""
    return answer(
        200, b"".join(b"data: " + content + b"\n\n" for content in contents), Content_Type="text/event-stream"
    )


def silence(duration_s: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """Nothing for so long; then the connection ends."""

    def step(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(duration_s)
        handler.close_connection = True

    return step
