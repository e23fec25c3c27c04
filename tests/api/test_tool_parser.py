"""Finding calls in text, piece by piece: the same whatever the pieces are."""

import json

import pytest

from onebasis.api.tool_formats import PLAIN_FORMAT, TOOL_FORMATS, detect_tool_parser
from onebasis.api.tool_parser import ToolCallStream

HERMES, LLAMA, MISTRAL = (TOOL_FORMATS[name] for name in ("hermes", "llama3_json", "mistral"))
ROME, OSLO = {"city": "Rome"}, {"city": "Oslo", "note": 'a "}" in </tool_call>'}
BOTH = [("weather", ROME), ("time", OSLO)]


def parse(tool_format, text, size, *, parallel=True):
    stream = ToolCallStream(tool_format, ["weather", "time"], parallel=parallel)
    deltas = [stream.push(text[i : i + size]) for i in range(0, len(text), size)] + [stream.finish()]
    calls = [call for delta in deltas for call in delta.calls]
    assert len({call.id for call in calls}) == len(calls)
    return "".join(delta.content for delta in deltas), [(call.name, json.loads(call.arguments)) for call in calls]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("tool_format", "text", "content", "calls"),
    [
        (HERMES, HERMES.write(BOTH), "", BOTH),
        (HERMES, "Let me see.\n" + HERMES.write(BOTH[:1]), "Let me see.\n", BOTH[:1]),
        (HERMES, HERMES.write(BOTH[:1]) + "\nDone <b>", "Done <b>", BOTH[:1]),
        (HERMES, '<tool_call>{"name": "weather", "arguments": {}}</tool_call>', "", [("weather", {})]),
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}', "", BOTH[:1]),
        (HERMES, "a < b, <tool, <tool_cal", "a < b, <tool, <tool_cal", []),
        (HERMES, '<tool_call>\n{"name": "weath', '<tool_call>\n{"name": "weath', []),
        (HERMES, "<tool_call>\nno call", "<tool_call>\nno call", []),
        (HERMES, "", "", []),
        (LLAMA, LLAMA.write(BOTH), "", BOTH),
        (LLAMA, '{"answer": 3}', '{"answer": 3}', []),
        (LLAMA, "Text {in braces}", "Text {in braces}", []),
        (MISTRAL, MISTRAL.write(BOTH), "", BOTH),
        (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', "", BOTH[:1]),
        (MISTRAL, "[TOOL] is no call", "[TOOL] is no call", []),
        (PLAIN_FORMAT, PLAIN_FORMAT.write(BOTH), "", BOTH),
        (PLAIN_FORMAT, "[1, 2]", "[1, 2]", []),
    ],
)
def test_calls_and_content_are_told_apart(tool_format, text, content, calls, size):
    assert parse(tool_format, text, size) == (content, calls)


@pytest.mark.parametrize(
    "found",
    [
        '{"name": "unknown", "arguments": {}}',
        '{"name": "weather", "arguments": [1]}',
        '{"name": ["weather"], "arguments": {}}',
        '{"arguments": {}}',
    ],
)
def test_an_object_that_is_no_call_of_ours_is_content(found):
    content, calls = parse(HERMES, f"<tool_call>\n{found}\n</tool_call>", 4)
    assert calls == []
    assert found in content


def test_without_parallel_calls_only_the_first_counts():
    assert parse(HERMES, HERMES.write(BOTH), 5, parallel=False) == ("", BOTH[:1])


def test_content_is_not_held_back_longer_than_it_could_be_a_call():
    stream = ToolCallStream(HERMES, ["weather"], parallel=True)
    assert stream.push("a <too").content == "a "
    assert stream.push("th").content == "<tooth"


def test_a_call_is_given_out_as_soon_as_it_is_whole():
    stream = ToolCallStream(HERMES, ["weather"], parallel=True)
    assert stream.push('<tool_call>\n{"name": "weather", "arguments": {}').calls == []
    assert len(stream.push("}").calls) == 1


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ tools }} <tool_call>\n{'name': ...}</tool_call>", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ('{{ tools }} Environment: ipython {"name": function name, "parameters": dictionary}', "llama3_json"),
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", None),
        ("<tool_call>\n<function=a>", None),
        ("[TOOL_CALLS]name[ARGS]{}", None),
    ],
)
def test_the_chat_template_tells_the_format(template, name):
    assert detect_tool_parser(template) == name


def test_half_a_character_in_an_argument_can_be_sent():
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "x\\ud83d"}}\n</tool_call>'
    stream = ToolCallStream(HERMES, ["weather"], parallel=True)
    (call,) = stream.push(text).calls
    assert call.arguments.encode() == rb'{"city": "x\ud83d"}'
