"""LangChain's ChatOpenAI, unmodified: invoke, stream, bind_tools, with_structured_output."""

from typing import Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field

from tests.api.server import TASKS
from tests.api.tiny_model import BASE_NAME


class Place(BaseModel):
    """A city and days."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=9)


@pytest.fixture
def chat(url):
    def make(model: str = BASE_NAME, **settings: object) -> ChatOpenAI:
        options = {"temperature": 0, "max_tokens": 200, "max_retries": 0} | settings
        return ChatOpenAI(model=model, base_url=url, **options)

    return make


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_a_stream_is_the_answer_in_pieces_and_tells_its_usage(chat, model):
    llm = chat(model, max_tokens=8, stream_usage=True)
    whole = llm.invoke("the cat")
    chunks = list(llm.stream("the cat"))
    assert len(chunks) > 2
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert whole.usage_metadata["output_tokens"] == 8
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 8


def test_tools_are_bound_called_and_answered(chat):
    llm = chat(temperature=1, seed=3).bind_tools([Place], tool_choice="Place", parallel_tool_calls=False)
    answer = llm.invoke("the cat")
    (call,) = answer.tool_calls
    assert call["name"] == "Place"
    assert isinstance(Place(**call["args"]), Place)
    follow_up = [HumanMessage("the cat"), answer, ToolMessage("sunny", tool_call_id=call["id"])]
    assert chat(max_tokens=4).invoke(follow_up).usage_metadata["output_tokens"] == 4


def test_streamed_tool_calls_are_assembled(chat):
    llm = chat(temperature=1, seed=3, max_tokens=800).bind_tools([Place], tool_choice="any", parallel_tool_calls=False)
    whole = None
    for chunk in llm.stream("the cat"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls
    assert all(Place(**call["args"]) for call in whole.tool_calls)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
def test_structured_output_is_an_object_of_the_class(chat, method, strict):
    llm = chat(temperature=1, seed=5).with_structured_output(Place, method=method, strict=strict)
    assert isinstance(llm.invoke("the cat"), Place)


def test_an_unknown_model_raises(chat):
    with pytest.raises(openai.NotFoundError):
        chat("nope").invoke("the cat")
