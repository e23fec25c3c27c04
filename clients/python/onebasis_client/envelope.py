"""From an error answer, or an error event of a stream, to an exception."""

import email.utils
import math
import reprlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from onebasis_client.api_errors import ERRORS_BY_CODE, CapacityError, RequestError
from onebasis_client.calls import Reply
from onebasis_client.errors import ApiError, OneBasisError, UnexpectedReply

RETRY_LATER: Final = frozenset({429, 503})


def error_of(reply: Reply) -> OneBasisError:
    """What an answer that is no success stands for. A gateway's 429 or 503 needs no envelope."""
    if reply.status < 400:
        location = reply.headers.get("location")
        return UnexpectedReply(f"HTTP {reply.status} to {location!r}: redirects are not followed; is base_url right?")
    request_id = reply.headers.get("x-request-id")
    retry_after_s = _retry_after_s(reply.headers)
    error: OneBasisError
    try:
        error = error_in(reply.json(), status=reply.status, request_id=request_id, retry_after_s=retry_after_s)
    except UnexpectedReply as no_json:
        error = no_json
    if isinstance(error, UnexpectedReply) and reply.status in RETRY_LATER:
        return CapacityError(str(error), status=reply.status, request_id=request_id, retry_after_s=retry_after_s)
    return error


def error_in(
    body: Any, *, status: int | None = None, request_id: str | None = None, retry_after_s: float | None = None
) -> OneBasisError:
    """The exception for `{"error": {message, type, param, code}}`. A code without a class here goes by its status.

    Args:
        body: parsed JSON of whatever shape.
        status: None for an event of a stream.
    """
    match body:
        case {"error": {"message": str(message), "code": str(code), **detail}}:
            param = detail.get("param")
            return ERRORS_BY_CODE.get(code, _class_of_status(status))(
                message,
                code=code,
                status=status,
                param=param if isinstance(param, str) else None,
                request_id=request_id,
                retry_after_s=retry_after_s,
            )
    return UnexpectedReply(f"HTTP {status}, needs an error envelope, found {reprlib.repr(body)}")


def _class_of_status(status: int | None) -> type[ApiError]:
    if status in RETRY_LATER:
        return CapacityError
    return RequestError if status is not None and 400 <= status < 500 else ApiError


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`retry-after-ms`, else `Retry-After` in seconds or as a date; None if neither can be read."""
    milliseconds = _non_negative(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    found = headers.get("retry-after")
    seconds = _non_negative(found)
    if seconds is not None or found is None:
        return seconds
    try:
        date = email.utils.parsedate_to_datetime(found)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _non_negative(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
