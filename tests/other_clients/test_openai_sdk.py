"""OpenAI's own Python SDK, unmodified: chat, completions, streams, tools, parsed answers, errors; sync and async."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.api.server import TASKS
from tests.api.tiny_model import BASE_NAME

USER = [{"role": "user", "content": "the cat"}]
GREEDY = {"temperature": 0, "max_tokens": 8}


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)


class weather(Place):  # noqa: N801 - the SDK names the function after the class
    """Weather of a city."""


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, max_retries=0) as found:
        yield found


@pytest.fixture
def tool_client(tool_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tool_server.port}/v1", max_retries=0) as found:
        yield found


def test_models_are_listed_and_shown(client):
    assert [model.id for model in client.models.list()][:4] == [BASE_NAME, *TASKS]
    assert client.models.retrieve(TASKS[0]).owned_by == "onebasis"


@pytest.mark.parametrize("model", [BASE_NAME, *TASKS])
def test_a_chat_whole_and_streamed(client, model):
    whole = client.chat.completions.create(model=model, messages=USER, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model=model, messages=USER, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    assert whole.onebasis["task"] == (None if model == BASE_NAME else model)


def test_completions_with_echo_and_logprobs(client):
    answer = client.completions.create(model=TASKS[0], prompt=["the cat", "a"], echo=True, logprobs=2, **GREEDY)
    assert [choice.text[: len(prompt)] for choice, prompt in zip(answer.choices, ("the cat", "a"), strict=True)] == [
        "the cat",
        "a",
    ]
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 2 + 8


def test_chat_logprobs(client):
    answer = client.chat.completions.create(model=BASE_NAME, messages=USER, logprobs=True, top_logprobs=3, **GREEDY)
    assert all(len(entry.top_logprobs) == 3 for entry in answer.choices[0].logprobs.content)


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_parsed_into_a_model(client, seed):
    answer = client.chat.completions.parse(
        model=TASKS[1], messages=USER, response_format=Place, temperature=1, seed=seed, max_tokens=100
    )
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_a_forced_tool_call_is_parsed_and_its_result_sent_back(client):
    tool = openai.pydantic_function_tool(weather)
    choice = {"type": "function", "function": {"name": "weather"}}
    body = {"model": BASE_NAME, "tools": [tool], "tool_choice": choice, "max_tokens": 200, "seed": 1}
    answer = client.chat.completions.parse(messages=USER, parallel_tool_calls=False, **body).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert isinstance(call.function.parsed_arguments, weather)
    said = client.chat.completions.create(messages=USER, parallel_tool_calls=False, **body).choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "sunny"}
    talk = [*USER, said.model_dump(), result]
    assert client.chat.completions.create(model=BASE_NAME, messages=talk, **GREEDY).choices[0].finish_reason == "length"


def test_with_tools_left_to_the_model_text_is_an_answer_too(tool_client):
    tool = openai.pydantic_function_tool(weather)
    answer = tool_client.chat.completions.create(model=BASE_NAME, messages=USER, tools=[tool], **GREEDY)
    (choice,) = answer.choices
    assert choice.message.tool_calls is None
    assert (choice.finish_reason, bool(choice.message.content)) == ("length", True)


def test_streamed_tool_calls_are_assembled(client):
    tool = openai.pydantic_function_tool(weather)
    with client.chat.completions.stream(
        model=BASE_NAME, messages=USER, tools=[tool], tool_choice="required", max_tokens=800, seed=2
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert all(isinstance(call.function.parsed_arguments, weather) for call in final.message.tool_calls)


@pytest.mark.parametrize(
    ("body", "error", "code"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_parameter"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "unsupported_parameter"),
        ({"max_tokens": 100_000}, openai.BadRequestError, "context_length_exceeded"),
        ({"extra_body": {"structured_outputs": {"regex": "[a-"}}}, openai.BadRequestError, "invalid_grammar"),
    ],
)
def test_failures_are_the_sdk_s_exceptions(client, body, error, code):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**({"model": BASE_NAME, "messages": USER} | body))
    assert caught.value.code == code
    assert caught.value.body["type"] == "invalid_request_error"
    assert caught.value.request_id


def test_a_full_queue_is_a_rate_limit_error(start_server, gate):
    server = start_server(max_running=1, max_waiting=0)
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0) as client, gate.shut():
        stream = client.completions.create(model=BASE_NAME, prompt="a", stream=True, **GREEDY)
        gate.wait_for_a_step()
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model=BASE_NAME, prompt="a", **GREEDY)
        assert caught.value.code == "queue_full"
        stream.close()


def test_an_error_in_the_middle_of_a_stream_is_raised(client, server, monkeypatch):
    stream = client.completions.create(model=BASE_NAME, prompt="a", stream=True, temperature=0, max_tokens=500)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr("onebasis.engine.isolation.sample", lambda *_: 1 / 0)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "internal"


def test_the_async_client_runs_many_at_once(url):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, max_retries=0) as client:

            async def streamed(model: str) -> str:
                chunks = await client.chat.completions.create(model=model, messages=USER, stream=True, **GREEDY)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            async def whole(model: str) -> str:
                answer = await client.chat.completions.create(model=model, messages=USER, **GREEDY)
                return answer.choices[0].message.content or ""

            return list(await asyncio.gather(*map(streamed, TASKS), *map(whole, TASKS)))

    found = asyncio.run(ask())
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


def test_extensions_go_through_extra_body(client):
    answer = client.completions.create(
        model=BASE_NAME,
        prompt="a",
        seed=1,
        max_tokens=30,
        extra_body={"structured_outputs": {"json": {"type": "boolean"}}, "top_k": 50, "timeout": 20, "priority": 1},
    )
    assert json.loads(answer.choices[0].text) in (True, False)
