"""How the answers to one chat may call tools: decided from its fields, told to the model, enforced by a grammar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onebasis.api.schemas import ChatBody, ChatMessage
from onebasis.api.structured import answer_grammar, response_schema
from onebasis.api.tool_formats import (
    PLAIN_FORMAT,
    ToolFormat,
    calls_grammar,
    text_with_calls_grammar,
    tool_prompt,
)
from onebasis.api.tools import FunctionTool, ToolChoice
from onebasis.core.errors import InvalidParameter, UnsupportedParameter
from onebasis.model.chat_template import TemplateInputs
from onebasis.model.text import ModelText


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that may be called, and how. `must_call`: the answer is calls and nothing else."""

    format: ToolFormat
    told: tuple[FunctionTool, ...]
    callable: tuple[FunctionTool, ...]
    must_call: bool
    parallel: bool


def tool_use(body: ChatBody, tool_format: ToolFormat | None) -> ToolUse | None:
    """None: no tool may be called, and the model hears of none.

    Args:
        tool_format: the model's; None if it was taught none. Then it can be made to call, not left to decide.

    Raises:
        InvalidParameter: the fields contradict each other.
        UnsupportedParameter: the model can't be left to decide.
    """
    if body.tools is None:
        if body.tool_choice not in (None, "none"):
            raise InvalidParameter("tool_choice", "needs tools")
        if not body.parallel_tool_calls:
            raise InvalidParameter("parallel_tool_calls", "needs tools")
        return None
    told = tuple(tool.function for tool in body.tools)
    if len({function.name for function in told}) < len(told):
        raise InvalidParameter("tools", "two functions have the same name")
    if body.tool_choice == "none":
        return None
    if body.structured_outputs is not None:
        raise InvalidParameter("structured_outputs", "can't go with tools; use response_format, or tool_choice none")
    named = body.tool_choice.function.name if isinstance(body.tool_choice, ToolChoice) else None
    may_call = tuple(function for function in told if named in (None, function.name))
    if not may_call:
        raise InvalidParameter("tool_choice", f"no function of tools is called {named!r}")
    must_call = body.tool_choice not in (None, "auto")
    if tool_format is None and not must_call:
        raise UnsupportedParameter(
            "tool_choice",
            "this model's chat template shows no format for calls, so it can't be left to decide; "
            "send tool_choice required or a function's name, or start the server with --tool-parser",
        )
    return ToolUse(tool_format or PLAIN_FORMAT, told, may_call, must_call, body.parallel_tool_calls)


def chat_grammar(body: ChatBody, tools: ToolUse | None, text: ModelText) -> tuple[str, str] | None:
    """(parameter, grammar) of the answers; None for any text.

    Raises:
        InvalidParameter, UnsupportedParameter, InvalidGrammar.
    """
    if tools is None:
        return answer_grammar(body.response_format, body.structured_outputs)
    schema = None if body.response_format is None else response_schema(body.response_format)
    if tools.must_call or schema is not None:
        return "tools", calls_grammar(
            tools.format,
            tools.callable,
            parallel=tools.parallel,
            special_tokens=text.special_tokens,
            answer_schema=None if tools.must_call else schema,
        )
    if not any(function.strict for function in tools.callable):
        return None
    if not tools.format.marks_each_call or tools.format.marker in text.special_tokens:
        raise UnsupportedParameter(
            "tools", "strict functions need tool_choice required or a function's name with this model's format"
        )
    return "tools", text_with_calls_grammar(tools.format, tools.callable)


def encode_chat(
    messages: Sequence[ChatMessage], tools: ToolUse | None, text: ModelText, inputs: TemplateInputs
) -> tuple[int, ...]:
    """The prompt. A template that knows no tools gets them, their calls and results as plain messages.

    Raises:
        InvalidParameter, ContextLengthExceeded.
    """
    if inputs.continue_final_message and (messages[-1].role != "assistant" or messages[-1].tool_calls is not None):
        raise InvalidParameter("continue_final_message", "the last message must be the assistant's, without calls")
    if inputs.continue_final_message and tools is not None:
        raise InvalidParameter("continue_final_message", "can't go with tools; send tool_choice none")
    if text.template_knows_tools:
        told = None if tools is None else [function.as_template_input() for function in tools.told]
        return text.encode_chat([_as_template_input(message) for message in messages], inputs, told)
    tool_format = PLAIN_FORMAT if tools is None else tools.format
    plain = [_without_tools(message, tool_format) for message in messages]
    if tools is not None:
        prompt = tool_prompt(tools.format, tools.told)
        if plain[0]["role"] == "system":
            plain[0] = {"role": "system", "content": f"{plain[0]['content']}\n\n{prompt}"}
        else:
            plain.insert(0, {"role": "system", "content": prompt})
    return text.encode_chat(plain, inputs)


def _as_template_input(message: ChatMessage) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.tool_calls is not None:
        given["tool_calls"] = [call.as_template_input() for call in message.tool_calls]
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    return given


def _without_tools(message: ChatMessage, tool_format: ToolFormat) -> dict[str, str]:
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
    if message.tool_calls is None:
        return {"role": message.role, "content": message.text}
    calls = [(call.function.name, call.function.arguments_object()) for call in message.tool_calls]
    return {"role": message.role, "content": message.text + tool_format.write(calls)}
