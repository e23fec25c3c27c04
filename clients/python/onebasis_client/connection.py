"""Where the server is and how to speak to it over httpx, as far as both clients do the same."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from onebasis_client.calls import OnSent, Reply, Request
from onebasis_client.envelope import error_of
from onebasis_client.errors import CannotConnect, ConnectionLost, OneBasisError, TimedOut, UnexpectedReply
from onebasis_client.version import __version__

LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
"""Idle connections are given up before a server would (uvicorn: 5 s), so that no request meets a closing one."""

_PIECE_BYTES: Final = 64 * 1024


class Connection:
    """Makes httpx requests of ours. Immutable.

    Args:
        base_url: such as `https://host:8000`, without `/v1`.
        api_key: sent as a bearer token.
        timeout_s: longest silence of the server, so for a whole answer the time until it comes.
        connect_timeout_s: longest time to a connection.

    Raises:
        ValueError: base_url is no address of http or https, or api_key can't be sent in a header.
    """

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float, connect_timeout_s: float) -> None:
        if not _is_address(base_url):
            raise ValueError(f"base_url: needs http://HOST:PORT or https://..., without a query, found {base_url!r}")
        if api_key is not None and not _is_header_value(api_key):
            raise ValueError("api_key: needs printable ASCII characters, at least one, and no space at either end")
        self.base_url = base_url.rstrip("/")
        self._headers = {"User-Agent": f"onebasis-client/{__version__}", "Accept": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s

    def build(self, request: Request) -> httpx.Request:
        """The same as httpx has it."""
        timeout_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, self._connect_timeout_s))
        url = httpx.URL(self.base_url + request.path, params=request.params or None)
        headers = {"Host": url.netloc.decode(), **self._headers, **_length(request), **request.headers}
        return httpx.Request(
            request.method,
            url,
            headers=httpx.Headers(headers, encoding="utf-8"),
            stream=Body(request.content, request.on_sent),
            extensions={"timeout": timeout.as_dict()},
        )


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Bytes that tell how many of them have been taken for sending. May be sent again."""

    def __init__(self, content: bytes, on_sent: OnSent | None) -> None:
        self._content = content
        self._on_sent = on_sent

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), _PIECE_BYTES):
            self._tell(start)
            yield self._content[start : start + _PIECE_BYTES]
        self._tell(len(self._content))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def _tell(self, n_bytes: int) -> None:
        if self._on_sent is not None:
            self._on_sent(n_bytes)


def reply_of(response: httpx.Response) -> Reply:
    """The whole answer, once its body has been read."""
    return Reply(response.status_code, dict(response.headers), response.content)


def is_answer(response: httpx.Response) -> bool:
    """A success, or the 304 that a condition asked for. A redirect is neither: nothing was done yet."""
    return response.is_success or response.status_code == httpx.codes.NOT_MODIFIED


def check_events(response: httpx.Response) -> None:
    """Raise UnexpectedReply unless the answer is a stream of events."""
    found = response.headers.get("content-type", "")
    if not found.startswith("text/event-stream"):
        raise UnexpectedReply(f"HTTP {response.status_code}, needs text/event-stream, found {found!r}")


def failure_of(response: httpx.Response) -> OneBasisError:
    """The error of an answer that has been read and is none."""
    return error_of(reply_of(response))


@contextmanager
def network_errors(*, heard: bool) -> Iterator[None]:
    """Turns httpx's errors into ours. `heard`: the answer has begun."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise CannotConnect(f"can't connect to {_origin(error)}: {error}") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"{_origin(error)} was silent for longer than the timeout ({type(error).__name__})") from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise ConnectionLost(f"the connection to {_origin(error)} broke: {error}", heard=heard) from error
    except httpx.HTTPError as error:
        raise UnexpectedReply(f"{type(error).__name__}: {error}") from error


def _is_address(base_url: str) -> bool:
    """Paths can be put behind it, and a socket can be opened to it."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        return False
    is_whole = url.scheme in ("http", "https") and url.host != "" and (url.port is None or 0 < url.port < 65536)
    return is_whole and "?" not in base_url and "#" not in base_url


def _is_header_value(text: str) -> bool:
    return text != "" and text.isascii() and text.isprintable() and text == text.strip()


def _length(request: Request) -> dict[str, str]:
    """Requests of these methods have no body, and say nothing about its length."""
    return {} if request.method in ("GET", "HEAD", "DELETE") else {"Content-Length": str(len(request.content))}


def _origin(error: httpx.RequestError) -> str:
    url = error.request.url
    return f"{url.scheme}://{url.netloc.decode()}"
