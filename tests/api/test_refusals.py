"""What the generation routes refuse: each by the name of the field, before anything runs."""

import json

import pytest

from tests.api.server import TASKS, refused
from tests.api.tiny_model import BASE_NAME, INVISIBLE, MAX_POSITIONS, N_VOCAB

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "the cat"}]
PROMPT = {COMPLETIONS: {"prompt": "the cat"}, CHAT: {"messages": USER}}

OUT_OF_RANGE = {
    "n": [0, -1, 17, 1.0, "1", True],
    "temperature": [-0.1, "0", True],
    "top_k": [-2, 1.5],
    "top_p": [0, -1, 1.1],
    "min_p": [-0.1, 1.1],
    "seed": [2**63, -(2**63) - 1, 1.5, "1"],
    "stop": ["", [""], 5, ["a"] * 17, "a" * 257, [None]],
    "stop_token_ids": [[-1], [N_VOCAB], 5, ["5"], list(range(65)), [True]],
    "ignore_eos": ["true", 1],
    "min_tokens": [-1, 1.5, "1", MAX_POSITIONS + 1],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "repetition_penalty": [0, -1, 10.1],
    "logit_bias": [{"5": 101}, {"5": -101}, {str(N_VOCAB): 1}, {"-1": 1}, {"the": 1}, {"9" * 5000: 1}, [5], {"5": "1"}],
    "stream": ["yes", 1],
    "stream_options": [{}, "usage"],
    "user": [5, "a" * 257],
    "timeout": [0, -1, "5", 86401],
    "priority": [1.5, "1", 2**31],
    "max_tokens": [0, -1, 1.5, "8"],  # 0 needs echo
    "model": ["", 5, ["tiny-llama"]],
}


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("param", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_out_of_range_is_refused_with_its_name(server, path, param, value):
    refused(server.post(path, **(PROMPT[path] | {param: value})), 400, "invalid_parameter", param)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize(
    "param", ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
)
def test_a_number_that_is_not_finite_is_refused(server, param, value):
    text = f'{{"model": "{BASE_NAME}", "prompt": "a", "{param}": {value}}}'
    refused(_send(server, text), 400, "invalid_parameter", param)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        [""],
        [[]],
        ["a", ""],
        [[1], []],
        5,
        {"a": 1},
        ["a", 5],
        [1, "a"],
        [1.5],
        [-1],
        [True],
        [N_VOCAB],
        [[1], [N_VOCAB]],
        [[[1]]],
        ["a"] * 257,
        INVISIBLE,
        ["a", INVISIBLE],
    ],
)
def test_a_prompt_that_is_none_is_refused(server, prompt):
    refused(server.post(COMPLETIONS, prompt=prompt), 400, "invalid_parameter", "prompt")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [5],
        [{}],
        [{"role": "user"}],
        [{"content": "a"}],
        [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [*USER, {"role": "system", "content": "late"}],
    ],
)
def test_messages_that_are_none_are_refused(server, messages):
    refused(server.post(CHAT, messages=messages), 400, "invalid_parameter", "messages")


@pytest.mark.parametrize(("path", "param"), [(COMPLETIONS, "prompt"), (CHAT, "messages"), (CHAT, "model")])
def test_a_missing_field_is_named(server, path, param):
    body = {"model": BASE_NAME} | PROMPT[path]
    del body[param]
    refused(server.client.post(path, json=body), 400, "invalid_parameter", param)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("suffix", "x"),
        ("functions", []),
        ("bad_words", ["a"]),
        ("guided_json", {}),
        ("lora", "alpha"),
        ("body", 1),
        ("query", 1),
        ("__proto__", 1),
        ("", 1),
        ("échô", False),
    ],
)
def test_an_unknown_field_is_refused_by_its_name(server, path, param, value):
    message = refused(server.post(path, **(PROMPT[path] | {param: value})), 400, "unsupported_parameter", param)
    assert param in message


@pytest.mark.parametrize("param", ["echo", "prompt", "best_of"])
def test_a_completions_field_is_unknown_to_chat(server, param):
    refused(server.post(CHAT, messages=USER, **{param: True}), 400, "unsupported_parameter", param)


def test_unknown_fields_inside_a_field_are_refused_by_their_path(server):
    named = [{"role": "user", "content": "a", "name": "bob"}]
    refused(server.post(CHAT, messages=named), 400, "unsupported_parameter", "messages.0.name")
    options = {"include_usage": True, "include_obfuscation": True}
    response = server.post(COMPLETIONS, prompt="a", stream=True, stream_options=options)
    refused(response, 400, "unsupported_parameter", "stream_options.include_obfuscation")


@pytest.mark.parametrize("param", ["top_logprobs", "max_completion_tokens", "tools", "tool_choice"])
def test_chat_fields_are_unknown_to_completions(server, param):
    refused(server.post(COMPLETIONS, prompt="a", **{param: 1}), 400, "unsupported_parameter", param)


@pytest.mark.parametrize("value", [-1, 21, True, "3", 1.5])
def test_logprobs_out_of_range(server, value):
    refused(server.post(COMPLETIONS, prompt="a", logprobs=value), 400, "invalid_parameter", "logprobs")
    body = {"messages": USER, "logprobs": True, "top_logprobs": value}
    refused(server.post(CHAT, **body), 400, "invalid_parameter", "top_logprobs")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
    ],
)
def test_contradictions_in_a_chat_are_refused(server, body, param):
    refused(server.post(CHAT, messages=USER, **body), 400, "invalid_parameter", param)


def test_more_than_the_context_holds(server):
    too_long = {"prompt": [7] * 40, "max_tokens": MAX_POSITIONS - 39}
    message = refused(server.post(COMPLETIONS, **too_long), 400, "context_length_exceeded", "prompt")
    assert f"{MAX_POSITIONS} tokens" in message
    assert f"{MAX_POSITIONS + 1} tokens" in message
    long_chat = [{"role": "user", "content": "a" * MAX_POSITIONS}]
    refused(server.post(CHAT, messages=long_chat), 400, "context_length_exceeded", "messages")
    refused(server.post(COMPLETIONS, prompt=[[7], [7] * MAX_POSITIONS]), 400, "context_length_exceeded", "prompt")


def test_more_sequences_than_the_server_ever_holds(start_server):
    server = start_server(max_running=2, max_waiting=1)
    refused(server.post(COMPLETIONS, prompt="a", n=4), 400, "invalid_parameter", "n")
    refused(server.post(COMPLETIONS, prompt=["a", "b"], n=2), 400, "invalid_parameter", "n")
    assert len(server.complete(n=3)["choices"]) == 3


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"\xff\xfe{}",
        b'{"model": "\xff"}',
        b"{'model': 'a'}",
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100000,
        b"\x00" * 100,
    ],
)
def test_a_body_that_is_no_json_object(server, path, body):
    refused(_send(server, body, path), 400, "invalid_json")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_json_under_another_content_type_is_refused(server, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = json.dumps({"model": BASE_NAME, "prompt": "a"}).encode()
    response = server.client.post(COMPLETIONS, content=body, headers=headers)
    assert "Content-Type" in refused(response, 400, "invalid_json")


@pytest.mark.parametrize("field", ["model", "prompt", "user", "stop"])
def test_half_a_character_is_refused(server, field):
    text = json.dumps({"model": BASE_NAME, "prompt": "a", field: "a\ud800"})
    refused(_send(server, text), 400, "invalid_parameter", field)


def test_a_field_named_by_half_a_character_is_refused(server):
    response = _send(server, f'{{"model": "{BASE_NAME}", "prompt": "a", "\\ud800": 1}}')
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "unsupported_parameter")


def test_refusals_start_nothing(server):
    before = server.metric("vllm:generation_tokens_total")
    for path in (COMPLETIONS, CHAT):
        for model in (BASE_NAME, *TASKS):
            assert server.post(path, model=model, **PROMPT[path], temperature=-1).status_code == 400
    assert server.is_idle()
    assert server.metric("vllm:generation_tokens_total") == before


def _send(server, body, path=COMPLETIONS):
    return server.client.post(path, content=body, headers={"Content-Type": "application/json"})


HALF = "a\ud83d"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud83d"}'}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": HALF}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [CALL]}]}),
        (CHAT, {"chat_template_kwargs": {"mood": [HALF]}, "messages": USER}),
        ("/tokenize", {"prompt": HALF}),
        ("/tokenize", {"messages": [{"role": "user", "content": HALF}]}),
    ],
)
def test_half_a_character_is_refused_in_every_text(server, path, body):
    refused(_send(server, json.dumps({"model": BASE_NAME, **body}), path), 400, "invalid_parameter", next(iter(body)))


@pytest.mark.parametrize("function", [{"description": HALF}, {"parameters": {"type": "object", "title": HALF}}])
@pytest.mark.parametrize("tool_choice", ["required", "none"])
def test_half_a_character_in_a_tool_is_refused(server, function, tool_choice):
    tools = [{"type": "function", "function": {"name": "f", **function}}]
    body = {"model": BASE_NAME, **PROMPT[CHAT], "tools": tools, "tool_choice": tool_choice}
    refused(_send(server, json.dumps(body), CHAT), 400, "invalid_parameter", "tools")
