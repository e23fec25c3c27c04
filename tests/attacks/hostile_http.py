"""Requests that no honest client sends, as bytes, each with the codes that it may be refused with."""

from collections.abc import Iterator
from dataclasses import dataclass

CLOSED = "(closed)"
"""Stands for an end of the connection without an answer: what came was broken off or was no HTTP."""


@dataclass(frozen=True)
class HostileRequest:
    """All bytes of one connection. `codes` are those of the first answer."""

    name: str
    data: bytes
    codes: frozenset[str]

    def __str__(self) -> str:
        return self.name


NO_HTTP = {"invalid_request"}
BROKEN_OFF = {CLOSED, "invalid_request"}

NAMES = {  # how a path may spell what is no task: every method is refused with a code of its own
    "dots": "%2e%2e",
    "dots and a file": "%2e%2e%2fetc%2fpasswd",
    "dots encoded twice": "%252e%252e%252fetc",
    "overlong dots": "%c0%ae%c0%ae",
    "a slash in front": "/etc/passwd",
    "a drive": "C:%5Cwindows",
    "NUL": "a%00b",
    "a line break": "a%0d%0aSet-Cookie:%20owned=1",
    "spaces": "%20a%20",
    "no UTF-8": "%ff%fe",
    "half a character": "%ed%a0%80",
    "an escape cut off": "a%2",
    "an escape in words": "a%zz",
    "Cyrillic": "%D0%B0lpha",
    "full width": "%EF%BD%81lpha",
    "a ligature": "%EF%AC%81le",
    "an invisible character": "alp%E2%80%8Bha",
    "right to left": "%E2%80%AEahpla",
    "an accent apart": "alpha%CC%81",
    "a pattern": "%25",
    "SQL": "a'%3BDROP%20TABLE%20task_versions--",
    "a template": "%7B%7B7*7%7D%7D",
    "129 letters": "a" * 129,
    "30,000 letters": "a" * 30_000,
    "30,000 escapes": "%61" * 10_000 + "b",
    "parameters": "alpha;v=1",
    "a digest": "alpha@sha256:" + "0" * 64,
}
PATHS = {
    "empty segments": "//v1//tasks//a",
    "dots": "/v1/../v1/tasks/../../etc/passwd",
    "backslashes": "\\v1\\tasks",
    "another host": "http://evil.example/v1/tasks",
    "a file": "file:///etc/passwd",
    "a star": "*",
    "a query of a query": "/nowhere?a=1?b=2&&&%00",
    "another case": "/V1/TASKS",
    "a slash behind": "/v1/tasks/",
}
QUERIES = {
    "limit=0",
    "limit=-1",
    "limit=9" * 3,
    "limit=" + "9" * 4000,
    "limit=1e3",
    "limit=%D9%A1",
    "limit=%00",
    "limit=",
    "limit=1&limit=x",
}
METHODS = ("POST", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "X" * 1000)
HEADERS = {  # fields that end the connection with a 400
    "a line break in an id": b"X-Request-Id: a\nSet-Cookie: owned=1\x00\r\n",
    "a lone carriage return": b"X-Request-Id: a\rSet-Cookie: owned=1\r\n",
    "NUL in a value": b"X-Request-Id: a\x00b\r\n",
    "NUL in a name": b"X-\x00: b\r\n",
    "a space before the colon": b"Content-Length : 5\r\n",
    "no colon": b"Content-Length\r\n",
    "no name": b": a\r\n",
    "a name that is no ASCII": b"X-\xc3\xa9: a\r\n",
    "two hosts": b"Host: y\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 5\r\n",
    "a list of lengths": b"Content-Length: 4, 5\r\n",
    "a length below 0": b"Content-Length: -1\r\n",
    "a length with a plus": b"Content-Length: +1\r\n",
    "a length in words": b"Content-Length: many\r\n",
    "a length in other digits": "Content-Length: \u0661\r\n".encode(),
    "a length of 5000 digits": b"Content-Length: " + b"9" * 5000 + b"\r\n",
    "a length in hexadecimal": b"Content-Length: 0x10\r\n",
    "an unknown encoding": b"Transfer-Encoding: gzip, chunked\r\n",
    "an encoding that looks alike": b"Transfer-Encoding: xchunked\r\n",
    "an encoding behind a tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "encodings twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
}
LARGE_HEADERS = {
    "one without end": b"X-Long: " + b"a" * 200_000,
    "many": b"".join(b"X-%d: a\r\n" % i for i in range(5000)),
    "a long value": b"X-Long: " + b"a" * 70_000 + b"\r\n",
    "a long name": b"X" * 70_000 + b": a\r\n",
    "folded lines": b"X-A: a\r\n" + b" b\r\n" * 60_000,
}
BODIES = {  # (fields, body, codes) of an upload
    "less than announced": (b"Content-Length: 5000", b"short", BROKEN_OFF),
    "more than announced": (b"Content-Length: 4", b"PK\x03\x04" * 500, {"pickle_refused"}),
    "length and chunks": (
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"0\r\n\r\n",
        {"truncated_file", *NO_HTTP},
    ),
    "a chunk size in words": (b"Transfer-Encoding: chunked", b"many\r\nabc\r\n0\r\n\r\n", NO_HTTP),
    "a chunk size of 2^64": (b"Transfer-Encoding: chunked", b"10000000000000000\r\nabc\r\n", BROKEN_OFF),
    "a chunk size of 2^400": (b"Transfer-Encoding: chunked", b"1" + b"0" * 100 + b"\r\nabc\r\n", BROKEN_OFF),
    "a chunk size below 0": (b"Transfer-Encoding: chunked", b"-1\r\nabc\r\n", NO_HTTP),
    "a chunk that is longer than it says": (b"Transfer-Encoding: chunked", b"1\r\nabc\r\n0\r\n\r\n", NO_HTTP),
    "a chunk with an endless extension": (b"Transfer-Encoding: chunked", b"1;" + b"a" * 200_000, NO_HTTP | BROKEN_OFF),
    "chunks that break off": (b"Transfer-Encoding: chunked", b"5\r\nab", BROKEN_OFF),
    "an endless trailer": (b"Transfer-Encoding: chunked", b"0\r\n" + b"X: a\r\n" * 30_000, NO_HTTP | BROKEN_OFF),
    "a digest that is wrong": (
        b"Content-Length: 4\r\nContent-Digest: sha-256=:" + b"A" * 43 + b"=:",
        b"abcd",
        {"digest_mismatch"},
    ),
    "a digest that is none": (b"Content-Length: 4\r\nContent-Digest: sha-256=:a:", b"abcd", {"invalid_parameter"}),
    "a digest and broken chunks": (
        b"Transfer-Encoding: chunked\r\nContent-Digest: no",
        b"many\r\n",
        {"invalid_parameter", *NO_HTTP},
    ),
    "a tag that is none": (b"Content-Length: 4\r\nIf-Match: sha256", b"abcd", {"invalid_parameter"}),
    "metadata that is deep": (
        b"Content-Length: 4\r\nOneBasis-Metadata: " + b"[" * 20_000,
        b"abcd",
        {"invalid_parameter"},
    ),
    "metadata that is no ASCII": (b"Content-Length: 4\r\nOneBasis-Metadata: {\xff", b"abcd", {"invalid_parameter"}),
}
GARBAGE = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "zeros": bytes(10_000),
    "a line without a path": b"GET\r\n\r\n",
    "a line with too many parts": b"GET / a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a path that is no ASCII": "GET /v1/tasks/\u0430 HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "a method with NUL": b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a proxy's request": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "redis": b"*1\r\n$4\r\nINFO\r\n",
    "nothing but lines": b"\r\n" * 5000,
    "a request that breaks off": b"GET /health HTT",
}


def hostile_requests() -> Iterator[HostileRequest]:
    """One of each kind."""
    for name, spelling in NAMES.items():
        upload = _request("PUT", f"/v1/tasks/{spelling}", b"Content-Length: 4\r\n", b"abcd")
        yield _hostile(f"upload to {name}", upload, "invalid_task_name route_not_found")
        yield _hostile(f"read of {name}", _request("GET", f"/v1/tasks/{spelling}"), "task_not_found route_not_found")
        yield _hostile(
            f"model card of {name}", _request("GET", f"/v1/models/{spelling}"), "model_not_found route_not_found"
        )
    for name, path in PATHS.items():
        yield _hostile(f"path: {name}", _request("GET", path), "route_not_found")
    for query in sorted(QUERIES):
        yield _hostile(f"query: {query[:20]}", _request("GET", f"/v1/tasks?{query}"), "invalid_parameter")
    for method in METHODS:
        yield _hostile(f"method {method[:9]}", _request(method, "/v1/tasks/alpha"), "method_not_allowed")
    for name, fields in HEADERS.items():
        yield _hostile(f"header: {name}", _request("PUT", "/v1/tasks/liar", fields), " ".join(BROKEN_OFF))
    for name, fields in LARGE_HEADERS.items():
        codes = "headers_too_large invalid_request"
        yield _hostile(f"headers: {name}", _request("GET", "/v1/tasks", fields), f"{codes} {CLOSED}")
    for name, (fields, body, codes) in BODIES.items():
        yield HostileRequest(
            f"body: {name}", _request("PUT", "/v1/tasks/liar", fields + b"\r\n", body), frozenset(codes)
        )
    for name, data in GARBAGE.items():
        codes = f"{CLOSED} invalid_request route_not_found method_not_allowed"
        yield _hostile(f"garbage: {name}", data, codes)


def _request(method: str, path: str, fields: bytes = b"", body: bytes = b"") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + fields + b"\r\n" + body


def _hostile(name: str, data: bytes, codes: str) -> HostileRequest:
    return HostileRequest(name, data, frozenset(codes.split()))
