"""Answers of a given shape: JSON, JSON of a schema, regex, choice, grammar. A model of random weights has to obey."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api.server import TASKS, refused
from tests.api.tiny_model import BASE_NAME

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "the cat"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ["city", "n", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "maxLength": 4}},
}
STRICT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
NO_SUCH_REFERENCE = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/no"}}}
FREE = {"temperature": 1.0, "max_tokens": 200, "ignore_eos": False}


def check_place(text):
    found = json.loads(text)
    assert list(found) == ["city", "n", "tags"]
    assert found["city"] in ("Rome", "Oslo")
    assert found["n"] in range(100)
    assert len(found["tags"]) <= 2
    return found


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
@pytest.mark.parametrize("seed", range(3))
def test_a_json_schema_is_obeyed_and_ends_the_answer(server, model, seed):
    (choice,) = server.chat(model=model, response_format=STRICT, seed=seed, **FREE)["choices"]
    check_place(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"


def test_strict_or_not_the_schema_is_obeyed(server):
    lax = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    same = [server.chat(response_format=shape, seed=5, **FREE)["choices"] for shape in (STRICT, lax)]
    assert same[0] == same[1]


def test_json_object_is_the_beginning_of_an_object_at_least(server):
    (choice,) = server.chat(response_format={"type": "json_object"}, seed=1, **FREE)["choices"]
    text = choice["message"]["content"]
    assert text.startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)


def test_text_is_any_text(server):
    assert server.chat(response_format={"type": "text"})["choices"] == server.chat()["choices"]


@pytest.mark.parametrize(
    ("outputs", "pattern"),
    [
        ({"regex": "[0-9]{3}-(cat|dog)"}, "[0-9]{3}-(cat|dog)"),
        ({"choice": ["the cat", 'a "mat"', "é\n"]}, 'the cat|a "mat"|é\n'),
        ({"grammar": 'start: "a" pair\npair: "(" pair ")" | "x"'}, r"a\(*x\)*"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json": {"type": "boolean"}}, "true|false"),
    ],
    ids=["regex", "choice", "lark", "gbnf", "json"],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_every_kind_of_structured_output_is_obeyed(server, path, outputs, pattern):
    ask = server.complete if path == COMPLETIONS else server.chat
    choices = ask(structured_outputs=outputs, n=4, seed=2, **FREE)["choices"]
    texts = [choice.get("text", choice.get("message", {}).get("content")) for choice in choices]
    for text, choice in zip(texts, choices, strict=True):
        if choice["finish_reason"] == "stop":
            assert re.fullmatch(pattern, text), text
    assert any(choice["finish_reason"] == "stop" for choice in choices)


def test_a_shape_works_with_everything_else(server):
    """Seeds repeat, tasks differ, n choices differ, stop strings cut, streams join."""
    body = {"structured_outputs": {"regex": "[a-z]{12}!"}, "temperature": 1.0, "ignore_eos": False, "max_tokens": 40}

    def texts(**more):
        return [choice["text"] for choice in server.complete(**body, **more)["choices"]]

    assert texts(seed=1, n=3) == texts(seed=1, n=3)
    assert len(set(texts(seed=1, n=3))) == 3
    assert all(re.fullmatch("[a-z]{12}!", text) for name in TASKS for text in texts(model=name, seed=4))
    (whole,) = texts(seed=1)
    assert texts(seed=1, stop=whole[5:7]) == [whole[: whole.index(whole[5:7])]]
    events = server.stream(COMPLETIONS, prompt="the cat", seed=1, **body)
    assert "".join(event["choices"][0]["text"] for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_ignore_eos_does_not_go_past_the_end_of_the_grammar(server):
    (choice,) = server.complete(structured_outputs={"choice": ["cat"]}, ignore_eos=True)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("cat", "stop")


def test_shaped_and_free_requests_share_steps_and_do_not_touch_each_other(server):
    alone = [server.text(name, max_tokens=24) for name in TASKS]
    with ThreadPoolExecutor(12) as pool:
        shaped = [pool.submit(server.chat, response_format=STRICT, seed=i, **FREE) for i in range(6)]
        free = [pool.submit(server.text, name, max_tokens=24) for name in TASKS * 2]
        assert [future.result() for future in free] == alone * 2
        for future in shaped:
            check_place(future.result()["choices"][0]["message"]["content"])


@pytest.mark.native_only("vLLM takes log-probabilities after the grammar's mask, so they are refused")
def test_logprobs_of_a_shaped_answer_are_the_model_s_own(server):
    free = server.complete(logprobs=3, max_tokens=1)["choices"][0]["logprobs"]
    shaped = server.complete(logprobs=3, max_tokens=1, structured_outputs={"regex": "[0-9]+"})["choices"][0]["logprobs"]
    assert shaped["tokens"][0].isdigit()
    assert shaped["token_logprobs"][0] < free["token_logprobs"][0]
    for token, number in free["top_logprobs"][0].items():
        assert shaped["top_logprobs"][0][token] == pytest.approx(number, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"structured_outputs": {"regex": "[a-"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "::= ::="}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"type": "nonsense"}}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a" * 300_000]}}, "structured_outputs"),
        ({"response_format": NO_SUCH_REFERENCE}, "response_format"),
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_shape_that_can_not_be_compiled_is_refused(server, path, body, param):
    prompt = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
    for stream in (False, True):
        refused(server.post(path, **prompt, **body, stream=stream), 400, "invalid_grammar", param)


@pytest.mark.parametrize("depth", [200, 900, 5000, 50_000])
def test_a_schema_of_any_depth_is_no_bug(server, depth):
    schema = '{"items": ' * depth + "{}" + "}" * depth
    text = f'{{"model": "{BASE_NAME}", "prompt": "a", "max_tokens": 1, "structured_outputs": {{"json": {schema}}}}}'
    response = server.client.post(COMPLETIONS, content=text, headers={"Content-Type": "application/json"})
    assert response.is_success or response.json()["error"]["code"] in ("invalid_grammar", "invalid_json")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "json_schema": {"name": "a"}}}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{}"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
    ],
)
def test_a_shape_that_is_none_is_refused(server, body, param):
    refused(server.post(COMPLETIONS, prompt="a", **body), 400, "invalid_parameter", param)


@pytest.mark.parametrize("param", ["guided_json", "guided_regex", "guided_choice", "guided_grammar"])
def test_the_names_that_vllm_gave_up_are_refused(server, param):
    refused(server.post(COMPLETIONS, prompt="a", **{param: "a"}), 400, "unsupported_parameter", param)
