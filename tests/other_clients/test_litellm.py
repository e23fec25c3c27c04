"""LiteLLM, unmodified: completion, stream, tools, its exceptions."""

import json

import litellm
import pytest

from tests.api.server import TASKS
from tests.api.tiny_model import BASE_NAME

USER = [{"role": "user", "content": "the cat"}]
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def ask(url, monkeypatch):
    monkeypatch.setattr(litellm, "telemetry", False)

    def call(model: str = BASE_NAME, **body: object):
        options = {"temperature": 0, "max_tokens": 8, "messages": USER, "num_retries": 0} | body
        return litellm.completion(model=f"openai/{model}", api_base=url, api_key="unused", **options)

    return call


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_a_stream_is_the_answer_in_pieces(ask, model):
    whole = ask(model)
    chunks = list(ask(model, stream=True, stream_options={"include_usage": True}))
    assert whole.usage.completion_tokens == 8
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8


def test_a_text_completion(url):
    answer = litellm.text_completion(
        model=f"text-completion-openai/{BASE_NAME}", prompt="the cat", api_base=url, api_key="unused", max_tokens=4
    )
    assert answer.usage.completion_tokens == 4


def test_a_forced_tool_call(ask):
    (call,) = (
        ask(tools=[NOW], tool_choice={"type": "function", "function": {"name": "now"}}, max_tokens=400)
        .choices[0]
        .message.tool_calls[:1]
    )
    assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})


def test_a_json_schema(ask):
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["x", "y"]}, "strict": True}}
    assert json.loads(ask(response_format=shape).choices[0].message.content) in ("x", "y")


def test_its_exceptions_are_the_right_ones(ask):
    with pytest.raises(litellm.NotFoundError):
        ask("nope")
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(max_tokens=100_000)
    with pytest.raises(litellm.BadRequestError):
        ask(temperature=-1)
