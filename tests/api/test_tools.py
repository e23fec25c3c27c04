"""Tools in a chat: forced and free calls, their grammar, streams, prompts, and what is refused."""

import json

import pytest

from onebasis.api.schemas import ChatBody
from onebasis.api.tool_formats import TOOL_FORMATS, calls_grammar, text_with_calls_grammar
from onebasis.api.tool_use import encode_chat, tool_use
from onebasis.engine.constraint import GrammarCompiler
from tests.api.server import TASKS, RunningServer, refused
from tests.api.tiny_model import BASE_NAME, EOS_ID, N_VOCAB

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "the cat"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
FREE = {"temperature": 1.0, "max_tokens": 400, "ignore_eos": False, "tools": [WEATHER, NOW]}


@pytest.fixture(scope="module")
def hermes(tiny):
    with RunningServer(tiny, tool_parser="hermes") as running:
        yield running


@pytest.fixture(params=["none", "hermes", "llama3_json", "mistral"])
def any_format(request, server, hermes, start_server):
    """A server of each tool format; `none` is a model that was taught none."""
    if request.param in ("none", "hermes"):
        return server if request.param == "none" else hermes
    return start_server(tool_parser=request.param)


def calls_of(choice):
    """(name, arguments) of a message that is calls alone."""
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    for call in choice["message"]["tool_calls"]:
        assert call.keys() == {"id", "type", "function"}
        assert call["type"] == "function"
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in choice["message"]["tool_calls"]]


def check_call(name, arguments):
    if name == "weather":
        assert arguments.keys() == {"city", "days"}
        assert arguments["city"] in ("Rome", "Oslo")
        assert arguments["days"] in range(1, 10)
    else:
        assert (name, arguments) == ("now", {})


def test_a_required_call_is_made_with_valid_arguments_in_every_format(any_format):
    body = FREE | {"parallel_tool_calls": False}
    for seed in range(3):
        (choice,) = any_format.chat(tool_choice="required", seed=seed, **body)["choices"]
        ((name, arguments),) = calls_of(choice)
        check_call(name, arguments)


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_a_named_function_is_called_and_no_other(server, model):
    choices = server.chat(model=model, tool_choice=NAMED, n=3, seed=1, **(FREE | {"parallel_tool_calls": False}))
    for choice in choices["choices"]:
        ((name, arguments),) = calls_of(choice)
        assert name == "weather"
        check_call(name, arguments)


def test_parallel_calls_are_several_each_with_an_id(hermes):
    body = FREE | {"max_tokens": 1500}
    found = []
    for seed in range(4):
        (choice,) = hermes.chat(tool_choice="required", seed=seed, **body)["choices"]
        calls = choice["message"]["tool_calls"]
        assert len({call["id"] for call in calls}) == len(calls)
        for call in calls:
            check_call(call["function"]["name"], json.loads(call["function"]["arguments"]))
        found.append(len(calls))
    assert max(found) > 1
    assert max(found) <= 16


def test_streamed_calls_are_the_whole_answer_s(any_format):
    body = FREE | {"tool_choice": "required", "seed": 3, "parallel_tool_calls": False}
    (whole,) = any_format.chat(**body)["choices"]
    calls, content, finish = [], "", None
    for event in any_format.stream(PATH, messages=USER, **body):
        (choice,) = event["choices"]
        content += choice["delta"]["content"]
        for call in choice["delta"].get("tool_calls", []):
            assert call["index"] == len(calls)
            calls.append((call["function"]["name"], json.loads(call["function"]["arguments"])))
        finish = choice["finish_reason"] or finish
    assert (content, calls, finish) == ("", calls_of(whole), "tool_calls")


def test_a_free_choice_may_be_text(hermes):
    (choice,) = hermes.chat(tools=[WEATHER])["choices"]
    assert choice["message"].keys() == {"role", "content"}
    assert choice["finish_reason"] == "length"


def test_a_free_choice_may_be_a_call_or_an_answer_of_the_shape_that_was_asked_for(hermes, tiny):
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x"]}}}
    body = FREE | {"response_format": shape, "parallel_tool_calls": False, "tool_choice": "auto", "max_tokens": 400}
    angle, quote = (str(tiny.encode(text)[0]) for text in ("<", '"'))
    (call,) = hermes.chat(logit_bias={angle: 50}, seed=1, **body)["choices"]
    check_call(*calls_of(call)[0])
    (text,) = hermes.chat(logit_bias={quote: 50}, seed=1, **body)["choices"]
    assert text["message"]["content"] == '"x"'
    assert text["finish_reason"] == "stop"


def test_tool_choice_none_neither_tells_nor_calls(hermes):
    plain = hermes.chat()
    answer = hermes.chat(tools=[WEATHER], tool_choice="none")
    assert answer["choices"] == plain["choices"]
    assert answer["usage"] == plain["usage"]


def test_a_call_that_max_tokens_cuts_is_content_and_says_length(server):
    (choice,) = server.chat(tools=[WEATHER], tool_choice="required", max_tokens=4)["choices"]
    assert choice["finish_reason"] == "length"
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"].startswith("[")


def test_a_call_and_its_result_can_be_sent_back(server, hermes):
    for running in (server, hermes):
        body = FREE | {"tool_choice": NAMED, "parallel_tool_calls": False, "seed": 1}
        (choice,) = running.chat(**body)["choices"]
        (call,) = choice["message"]["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        talk = [*USER, choice["message"], result]
        answer = running.chat(messages=talk)
        assert answer["usage"]["prompt_tokens"] > running.chat(messages=USER)["usage"]["prompt_tokens"]


def prompt_of(server, tools=None, messages=USER, tool_choice="required"):
    body = ChatBody(model=BASE_NAME, messages=messages, tools=tools, tool_choice=tool_choice if tools else None)
    services = server.parts.app.state.services
    ids = encode_chat(body.messages, tool_use(body, services.tool_format), services.text, body.template_inputs())
    return services.text.decode(list(ids), skip_special_tokens=False)


def test_a_template_that_knows_no_tools_is_told_in_the_system_message(server):
    told = prompt_of(server, [WEATHER])
    assert told.startswith("<|system|>You can call these functions:")
    assert '"Weather of a city"' in told
    assert '[{"name": "function name", "arguments": {...}}]' in told
    with_system = [{"role": "system", "content": "be kind"}, *USER]
    assert prompt_of(server, [WEATHER], with_system).startswith("<|system|>be kind\n\nYou can call")
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    talk = [*USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "9"}]
    shown = prompt_of(server, None, talk)
    assert '<|assistant|>[{"name": "now", "arguments": {"a": 1}}]</s>' in shown
    assert "<|user|><tool_response>\n9\n</tool_response></s>" in shown


def test_a_template_that_knows_tools_gets_them(server, monkeypatch):
    tokenizer = server.parts.app.state.services.text._tokenizer
    template = (
        "{% for t in tools or [] %}T:{{ t.function.name }};{% endfor %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}C:{{ c.function.name }}={{ c.function.arguments.city }}{% endfor %};"
        "{% endfor %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    talk = [*USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "9"}]
    assert prompt_of(server, [WEATHER, NOW], talk) == ("T:weather;T:now;user:the cat;assistant:C:weather=Rome;tool:9;")
    assert prompt_of(server) == "user:the cat;"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"tools": [WEATHER]}, "unsupported_parameter", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "unsupported_parameter", "tool_choice"),
        ({"tool_choice": "required"}, "invalid_parameter", "tool_choice"),
        ({"parallel_tool_calls": False}, "invalid_parameter", "parallel_tool_calls"),
        ({"tools": []}, "invalid_parameter", "tools"),
        ({"tools": [{"type": "function"}]}, "invalid_parameter", "tools"),
        ({"tools": [{"type": "web_search"}]}, "invalid_parameter", "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_parameter", "tools"),
        ({"tools": [NOW] * 2, "tool_choice": "required"}, "invalid_parameter", "tools"),
        ({"tools": [NOW], "tool_choice": NAMED}, "invalid_parameter", "tool_choice"),
        ({"tools": [NOW], "tool_choice": "any"}, "invalid_parameter", "tool_choice"),
        (
            {"tools": [NOW], "tool_choice": "required", "structured_outputs": {"regex": "a"}},
            "invalid_parameter",
            "structured_outputs",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "nonsense"}}}],
                "tool_choice": "required",
            },
            "invalid_grammar",
            "tools",
        ),
        ({"functions": [{"name": "a"}]}, "unsupported_parameter", "functions"),
    ],
)
def test_tools_that_make_no_sense_are_refused(server, body, code, param):
    refused(server.post(PATH, messages=USER, **body), 400, code, param)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "a"},
        {"role": "user", "content": "a", "tool_call_id": "a"},
        {"role": "user", "content": "a", "tool_calls": [{"id": "a", "function": {"name": "a", "arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": []},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "a", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "a", "arguments": "[]"}}]},
        {"role": "assistant"},
    ],
)
def test_messages_about_tools_that_make_no_sense_are_refused(server, message):
    refused(server.post(PATH, messages=[*USER, message]), 400, "invalid_parameter", "messages")


def follows(tiny, grammar, text):
    """The grammar allows this text, and the answer to end there."""
    compiler = GrammarCompiler(tiny.tokenizer, n_vocab=N_VOCAB, eos_token_ids=frozenset({EOS_ID}))
    state = compiler.compile(grammar, param="tools").start()
    for token in tiny.encode(text):
        if not state.allowed[token]:
            return False
        state.advance(token)
    return state.is_complete or bool(state.allowed[EOS_ID])


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral"])
def test_the_grammar_of_calls_is_the_format_s_own_way_to_write_them(tiny, name):
    tool_format = TOOL_FORMATS[name]
    functions = tool_use(
        ChatBody(model="a", messages=USER, tools=[WEATHER, NOW], tool_choice="required"), None
    ).callable
    good = [("weather", {"city": "Rome", "days": 3}), ("now", {})]
    many = calls_grammar(tool_format, functions, parallel=True, special_tokens={})
    one = calls_grammar(tool_format, functions, parallel=False, special_tokens={})
    assert follows(tiny, many, tool_format.write(good))
    assert follows(tiny, many, tool_format.write(good[:1]))
    assert follows(tiny, one, tool_format.write(good[:1]))
    assert not follows(tiny, one, tool_format.write(good))
    assert not follows(tiny, many, tool_format.write([("weather", {"city": "Paris", "days": 3})]))
    assert not follows(tiny, many, tool_format.write([("other", {})]))
    assert not follows(tiny, many, "hello")


def test_a_marker_that_is_a_special_token_is_that_token(tiny):
    functions = tool_use(ChatBody(model="a", messages=USER, tools=[NOW], tool_choice="required"), None).callable
    grammar = calls_grammar(TOOL_FORMATS["mistral"], functions, parallel=False, special_tokens={"[TOOL_CALLS]": 4})
    compiler = GrammarCompiler(tiny.tokenizer, n_vocab=N_VOCAB, eos_token_ids=frozenset({EOS_ID}))
    state = compiler.compile(grammar, param="tools").start()
    assert state.allowed.nonzero()[0].tolist() == [4]
    state.advance(4)
    assert tiny.encode("[")[0] in state.allowed.nonzero()[0]


def test_strict_arguments_are_enforced_inside_free_text(tiny):
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    functions = tool_use(ChatBody(model="a", messages=USER, tools=[strict, NOW]), TOOL_FORMATS["hermes"]).callable
    grammar = text_with_calls_grammar(TOOL_FORMATS["hermes"], functions)
    write = TOOL_FORMATS["hermes"].write
    assert follows(tiny, grammar, "hello there")
    assert follows(tiny, grammar, "I look. " + write([("weather", {"city": "Rome", "days": 3})]) + " done")
    assert not follows(tiny, grammar, write([("weather", {"city": "Paris", "days": 3})]))
    assert follows(tiny, grammar, write([("now", {"any": 1})]))


def test_strict_functions_are_refused_where_they_can_not_be_enforced(start_server):
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    server = start_server(tool_parser="llama3_json")
    refused(server.post(PATH, messages=USER, tools=[strict]), 400, "unsupported_parameter", "tools")
