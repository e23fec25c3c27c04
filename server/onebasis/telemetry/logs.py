"""Logging through the standard library: one line a record, as JSON or for people."""

import logging
import re
from datetime import UTC, datetime
from json import dumps
from typing import Final, TextIO

from onebasis.telemetry.request_context import request_fields

# What every record has; the rest of a record is what the caller gave as `extra`. Three more are not the caller's:
# `taskName` is newer Python's, `color_message` uvicorn's copy of the message with terminal codes, the last is vLLM's.
_NOT_EXTRA = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message", "vllm_process_name"}
)

_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_API_KEY = re.compile(r"\bob_[\w-]{20,}")


class _LineFormatter(logging.Formatter):
    """Makes one line of a record. Nothing of ours logs an API key, but a client may put one where a path belongs."""

    def format(self, record: logging.LogRecord) -> str:
        return _API_KEY.sub("ob_[hidden]", self.line(record))

    def line(self, record: logging.LogRecord) -> str:
        raise NotImplementedError


class JsonFormatter(_LineFormatter):
    """One JSON object a line: time, level, logger, message, a traceback if there is one, what is known of the request
    that the line belongs to, then `extra`.
    """

    def line(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return dumps({**entry, **_extra(record, taken=entry)}, default=str)


class TextFormatter(_LineFormatter):
    """The same for people: `time level logger: message key=value`, a traceback on the lines below.

    Control characters of a message are escaped: a path that a client sends can't begin a line or colour a terminal.
    """

    def line(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {key}={dumps(value, default=str)}" for key, value in _extra(record).items())
        message = record.getMessage().translate(_CONTROL)
        line = f"{_time(record)} {record.levelname} {record.name}: {message}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _ServerHandler(logging.StreamHandler[TextIO]):
    """To stderr. A class of its own, so that configuring again replaces this handler and no other."""


def configure_logging(level: str, *, json: bool) -> None:
    """Send the root logger's records of `level` and above to stderr. Calling it again replaces the choice.

    Raises:
        ValueError: no level has that name.
    """
    handler = _ServerHandler()
    handler.setFormatter(JsonFormatter() if json else TextFormatter())
    root = logging.getLogger()
    root.setLevel(level.upper())
    for old in [h for h in root.handlers if isinstance(h, _ServerHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extra(record: logging.LogRecord, taken: dict[str, object] | None = None) -> dict[str, object]:
    hidden = _NOT_EXTRA | (taken or {}).keys()
    given = {key: value for key, value in vars(record).items() if key not in hidden}
    return {**request_fields(), **given}
