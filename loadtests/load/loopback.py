"""Load is offered to this machine only."""

from ipaddress import ip_address

import httpx


def loopback_url(text: str) -> str:
    """The URL without a closing slash, if it is plain http(s) to 127.0.0.0/8, ::1 or localhost.

    httpx parses it, as it will when sending, so no second reading of the same text can lead elsewhere.

    Raises:
        ValueError: another host or scheme, or not a URL.
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not _is_loopback(url.host):
        allowed = "http(s)://127.x.x.x, [::1] or localhost"
        raise ValueError(f"{text!r} is refused: load is only offered to {allowed}")
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
