"""What a generation starts from: prompts, turns of a chat, tools. Fields and their meaning are OpenAI's."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text, token ids, or several of either."""


class TextPart(TypedDict):
    """A piece of a message's content. Text is the only kind."""

    type: Literal["text"]
    text: str


class CalledFunction(TypedDict):
    """`arguments`: text of a JSON object."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call of a tool, as it was answered."""

    id: str
    type: NotRequired[Literal["function"]]
    function: CalledFunction


class Message(TypedDict):
    """One turn of a chat: `content`, or an assistant's `tool_calls`. A tool's names the call that it answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: NotRequired[str | Sequence[TextPart] | None]
    tool_calls: NotRequired[Sequence[Call]]
    tool_call_id: NotRequired[str]


class Function(TypedDict):
    """A function that the model may call. `parameters`: JSON schema of its arguments, none by default."""

    name: str
    description: NotRequired[str]
    parameters: NotRequired[Mapping[str, Any]]
    strict: NotRequired[bool]


class Tool(TypedDict):
    """Something that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(TypedDict):
    """A function by name."""

    name: str


class ToolChoice(TypedDict):
    """This function and no other."""

    type: Literal["function"]
    function: FunctionName
