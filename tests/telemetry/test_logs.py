import json
import logging
import re

import pytest

from onebasis.telemetry.logs import configure_logging

pytestmark = pytest.mark.usefixtures("process_as_before")

LOGGER = logging.getLogger("onebasis.test")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_json_has_one_object_a_line_with_the_extra_fields(capsys):
    configure_logging("info", json=True)
    LOGGER.info("task %s\nstored", "sql", extra={"request_id": "r1", "task": "sql", "digest": "sha256:ab", "n": 3})
    LOGGER.warning("second")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert re.fullmatch(TIME, first.pop("time"))
    assert first == {
        "level": "INFO",
        "logger": "onebasis.test",
        "message": "task sql\nstored",
        "request_id": "r1",
        "task": "sql",
        "digest": "sha256:ab",
        "n": 3,
    }
    assert set(second) == {"time", "level", "logger", "message"}


def test_the_time_is_utc(capsys):
    configure_logging("info", json=True)
    record = logging.makeLogRecord({"name": "x", "msg": "m", "levelno": logging.INFO, "created": 1_700_000_000.25})
    LOGGER.handle(record)
    assert json.loads(capsys.readouterr().err)["time"] == "2023-11-14T22:13:20.250Z"


def test_json_takes_any_value_and_keeps_its_own_fields(capsys):
    configure_logging("info", json=True)
    LOGGER.info(
        "m",
        extra={
            "path": object(),
            "level": "forged",
            "time": "forged",
            "color_message": "x",
            "vllm_process_name": "Main",
        },
    )
    entry = json.loads(capsys.readouterr().err)
    assert entry["level"] == "INFO"
    assert re.fullmatch(TIME, entry["time"])
    assert entry["path"].startswith("<object")
    assert not {"color_message", "vllm_process_name"} & entry.keys()


def test_a_traceback_stays_in_its_line(capsys):
    configure_logging("info", json=True)
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        LOGGER.exception("failed", extra={"request_id": "r2"})
    [line] = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["exception"].endswith("RuntimeError: boom")
    assert entry["request_id"] == "r2"


def test_text_is_for_people(capsys):
    configure_logging("info", json=False)
    LOGGER.info("stored", extra={"task": "sql", "n": 3})
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        LOGGER.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(TIME + r' INFO onebasis\.test: stored task="sql" n=3', lines[0])
    assert lines[2].startswith("Traceback")
    assert lines[-1] == "RuntimeError: boom"


def test_the_level_is_honoured(capsys):
    configure_logging("warning", json=True)
    LOGGER.info("not this")
    LOGGER.warning("this")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["this"]


def test_configuring_again_replaces_our_handler_and_no_other(capsys):
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    configure_logging("info", json=True)
    configure_logging("info", json=False)
    LOGGER.info("once")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("once")
    assert other in logging.getLogger().handlers


def test_an_unknown_level_is_refused_and_changes_nothing():
    before = logging.getLogger().handlers[:]
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("loud", json=True)
    assert logging.getLogger().handlers == before


def test_a_message_for_people_is_one_line_without_terminal_codes(capsys):
    configure_logging("info", json=False)
    LOGGER.info("GET /%s 404", "\n2026-01-01 INFO forged\x1b[31m\x9b\u2028é")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("GET /\\x0a2026-01-01 INFO forged\\x1b[31m\\x9b\\x2028é 404")
