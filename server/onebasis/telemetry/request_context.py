"""Which request the running code works for, so that each of its log lines can say so."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_FIELDS: Final[ContextVar[dict[str, str] | None]] = ContextVar("onebasis_request", default=None)
"""One dict per request. Threads and tasks that work for it copy the context, and so share the dict."""


@contextmanager
def request_context(**fields: str) -> Iterator[None]:
    """For the block, and all that it calls or starts: these fields, and those that are noted later."""
    token = _FIELDS.set(dict(fields))
    try:
        yield
    finally:
        _FIELDS.reset(token)


def note(**fields: str | None) -> None:
    """Add to what is known of the current request; None says nothing. Without a request this does nothing."""
    known = _FIELDS.get()
    if known is not None:
        known.update({name: value for name, value in fields.items() if value is not None})


def request_fields() -> Mapping[str, str]:
    """What is known of the current request; empty outside of one."""
    return _FIELDS.get() or _NONE
