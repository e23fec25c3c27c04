"""POST /v1/chat/completions: the template, roles, log-probabilities, streamed deltas."""

import functools

import pytest

from tests.api.server import ok, refused
from tests.api.tiny_model import BASE_NAME, EOS_ID

PATH = "/v1/chat/completions"
NESTED = functools.reduce(lambda inner, _: [inner], range(900), [])
NOW = {"type": "function", "function": {"name": "now"}}
TALK = [
    {"role": "system", "content": "the cat is in the house"},
    {"role": "user", "content": "where is the cat"},
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": "and then"},
]


def contents(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_an_answer_has_the_shape_of_openai_s(server):
    answer = server.chat(max_tokens=5)
    assert answer.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices", "onebasis", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content"}
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "length")


@pytest.mark.parametrize("messages", [TALK, TALK[1:2], TALK[1:]])
def test_the_prompt_is_the_model_s_own_template(server, tiny, messages):
    ids = tiny.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = server.chat(messages=messages)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert contents(answer) == [server.text(BASE_NAME, prompt=ids)]


def test_text_parts_are_joined(server):
    parts = [{"role": "user", "content": [{"type": "text", "text": "the c"}, {"type": "text", "text": "at"}]}]
    whole = [{"role": "user", "content": "the cat"}]
    assert contents(server.chat(messages=parts)) == contents(server.chat(messages=whole))


def test_an_answer_can_be_sent_back_as_sdks_dump_it(server):
    """OpenAI's SDK dumps a message with its unused fields as null."""
    dumped = {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None, "function_call": None}
    plain = {"role": "assistant", "content": "a"}
    n_dumped, n_plain = (
        server.chat(messages=[TALK[1], message, TALK[3]])["usage"]["prompt_tokens"] for message in (dumped, plain)
    )
    assert n_dumped == n_plain


def test_a_prompt_may_end_with_its_last_message(server, tiny):
    ids = tiny.tokenizer.apply_chat_template(TALK, add_generation_prompt=False, return_dict=False)
    answer = server.chat(messages=TALK, add_generation_prompt=False)
    assert answer["usage"]["prompt_tokens"] == len(ids) == server.chat(messages=TALK)["usage"]["prompt_tokens"] - 1
    assert contents(answer) == [server.text(BASE_NAME, prompt=ids)]


@pytest.mark.parametrize("generation_prompt", [{}, {"add_generation_prompt": False}, {"add_generation_prompt": None}])
def test_the_last_message_can_be_continued(server, tiny, generation_prompt):
    ids = tiny.tokenizer.apply_chat_template(TALK[:3], continue_final_message=True, return_dict=False)
    answer = server.chat(messages=TALK[:3], continue_final_message=True, **generation_prompt)
    assert contents(answer) == [server.text(BASE_NAME, prompt=ids)]
    assert tiny.tokenizer.decode(ids).endswith("on the mat")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": TALK[:2]}, "continue_final_message"),
        ({"messages": TALK[:3], "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": TALK[:3], "tools": [NOW], "tool_choice": "required"}, "continue_final_message"),
    ],
    ids=["not the assistant's", "and one behind it", "tools"],
)
def test_what_can_not_be_continued_is_refused(server, body, param):
    refused(server.post(PATH, continue_final_message=True, **body), 400, "invalid_parameter", param)


def test_variables_of_the_template_can_be_set(server, tiny):
    ids = tiny.tokenizer.apply_chat_template(TALK, add_generation_prompt=True, mood="kind", return_dict=False)
    assert tiny.tokenizer.decode(ids).endswith("<|assistant|>kindkind ")
    answer = server.chat(messages=TALK, chat_template_kwargs={"mood": "kind"})
    assert contents(answer) == [server.text(BASE_NAME, prompt=ids)]
    plain = server.chat(messages=TALK)
    assert contents(server.chat(messages=TALK, chat_template_kwargs={})) == contents(plain)


@pytest.mark.parametrize(
    "name",
    ["moods", "message", "messages", "tools", "chat_template", "tokenize", "eos_token", "raise_exception", "range"],
)
def test_what_is_no_variable_of_the_template_s_own_is_refused(server, name):
    response = server.post(PATH, messages=TALK, chat_template_kwargs={name: "x"})
    assert refused(response, 400, "invalid_parameter", "chat_template_kwargs").endswith("it has: mood")


@pytest.mark.parametrize("value", [{"a": 1}, None])
def test_a_value_that_the_template_fails_with_is_refused(server, value):
    response = server.post(PATH, messages=TALK, chat_template_kwargs={"mood": value})
    refused(response, 400, "invalid_parameter", "chat_template_kwargs")


def test_a_value_that_is_nested_deeply_is_no_failure_of_the_server(server):
    assert server.post(PATH, messages=TALK, chat_template_kwargs={"mood": NESTED}).status_code == 400


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_output_limit(server, name):
    body = {"model": BASE_NAME, "messages": TALK[1:2], "ignore_eos": True, name: 3}
    assert ok(server.client.post(PATH, json=body))["usage"]["completion_tokens"] == 3


def test_equal_limits_under_both_names_are_no_contradiction(server):
    assert server.chat(max_tokens=3, max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_without_a_limit_the_answer_may_fill_the_context(start_server):
    server = start_server(max_model_len=64)
    usage = server.chat(max_tokens=None)["usage"]
    assert usage["total_tokens"] == 64
    assert usage["completion_tokens"] == 64 - usage["prompt_tokens"]


def test_logprobs_entries_name_token_bytes_and_alternatives(server):
    (choice,) = server.chat(logprobs=True, top_logprobs=4, max_tokens=6)["choices"]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 6
    for entry in entries:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert entry["bytes"] == list(entry["token"].encode())
        top = entry["top_logprobs"]
        assert [t.keys() for t in top] == [{"token", "logprob", "bytes"}] * 4
        assert top == sorted(top, key=lambda t: -t["logprob"])
        assert (top[0]["token"], top[0]["logprob"]) == (entry["token"], entry["logprob"]), "greedy takes the best"


@pytest.mark.parametrize("body", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 0}])
def test_logprobs_without_alternatives(server, body):
    (choice,) = server.chat(**body)["choices"]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[]] * 8


def test_no_logprobs_unless_asked_for(server):
    assert server.chat()["choices"][0]["logprobs"] is None
    assert server.chat(logprobs=False)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"messages": TALK, "max_tokens": 30},
        {"messages": TALK, "model": "alpha", "n": 3, "temperature": 1.0, "seed": 2, "max_tokens": 12},
        {"messages": TALK, "max_tokens": 4, "logit_bias": {str(EOS_ID): 100}, "ignore_eos": False},
    ],
    ids=["one", "n", "end of sequence"],
)
def test_deltas_joined_are_the_whole_answer(server, body):
    whole = server.chat(**body)
    text, finish = {}, {}
    for event in server.stream(PATH, **body):
        assert event["object"] == "chat.completion.chunk"
        (choice,) = event["choices"]
        if choice["index"] not in text:
            assert choice["delta"] == {"role": "assistant", "content": ""}, "the role comes first"
            assert choice["finish_reason"] is None
        else:
            assert choice["delta"].keys() == {"content"}
        assert choice["index"] not in finish
        text[choice["index"]] = text.get(choice["index"], "") + choice["delta"]["content"]
        if choice["finish_reason"] is not None:
            finish[choice["index"]] = choice["finish_reason"]
    assert [text[i] for i in sorted(text)] == contents(whole)
    assert [finish[i] for i in sorted(finish)] == [choice["finish_reason"] for choice in whole["choices"]]


def test_streamed_logprobs_and_usage(server):
    body = {"logprobs": True, "top_logprobs": 2, "max_tokens": 5}
    (whole,) = server.chat(**body)["choices"]
    *chunks, last = server.stream(
        PATH, messages=[{"role": "user", "content": "the cat"}], stream_options={"include_usage": True}, **body
    )
    entries = [e for chunk in chunks for c in chunk["choices"] if c["logprobs"] for e in c["logprobs"]["content"]]
    assert [e["token"] for e in entries] == [e["token"] for e in whole["logprobs"]["content"]]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
