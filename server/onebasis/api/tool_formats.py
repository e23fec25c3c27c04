"""How model families write calls of tools into their text: one table, from which prompt, grammar and parser follow."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from llguidance import LLMatcher, StructTag

from onebasis.api.structured import ANY_OBJECT, json_rule, schema_text
from onebasis.api.tools import FunctionTool
from onebasis.core.config import ToolParser

_MAX_CALLS: Final = 16  # of one answer that must call: a weak model would go on until its last token


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """Calls are `opening`, JSON objects joined by `between`, `closing`. Each object has a name and arguments.

    Args:
        arguments_key: the member that holds the arguments.
        marker: where it stands in the text, calls begin; None when only a text that begins with a JSON value is calls.
        words: what may stand around the objects, beside white space.
        marks_each_call: `opening` comes before every call, so that the text around calls can be told from them.
    """

    opening: str
    between: str
    closing: str
    arguments_key: str = "arguments"
    marker: str | None = None
    words: tuple[str, ...] = ()
    marks_each_call: bool = False

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """The text of (name, arguments)."""
        objects = [json.dumps({"name": name, self.arguments_key: dict(found)}) for name, found in calls]
        return self.opening + self.between.join(objects) + self.closing


TOOL_FORMATS: Final[Mapping[ToolParser, ToolFormat]] = MappingProxyType(
    {
        "hermes": ToolFormat(
            opening="<tool_call>\n",
            between="\n</tool_call>\n<tool_call>\n",
            closing="\n</tool_call>",
            marker="<tool_call>",
            words=("<tool_call>", "</tool_call>"),
            marks_each_call=True,
        ),
        "llama3_json": ToolFormat(
            opening="",
            between="; ",
            closing="",
            arguments_key="parameters",
            words=(";",),
        ),
        "mistral": ToolFormat(
            opening="[TOOL_CALLS][",
            between=", ",
            closing="]",
            marker="[TOOL_CALLS]",
            words=("[TOOL_CALLS]", "[", "]", ","),
        ),
    }
)

PLAIN_FORMAT: Final = ToolFormat(opening="[", between=", ", closing="]", words=("[", "]", ","))
"""A JSON list, for models that were taught no format: good enough where the grammar forces them."""


def detect_tool_parser(chat_template: str) -> ToolParser | None:
    """The format that a chat template teaches; None if it teaches none that is known here."""
    if "<tool_call>" in chat_template and "<function=" not in chat_template:  # those are Qwen3-Coder's, not JSON
        return "hermes"
    if "[TOOL_CALLS]" in chat_template and "[ARGS]" not in chat_template:
        return "mistral"
    if "ipython" in chat_template and '"parameters"' in chat_template:
        return "llama3_json"
    return None


def calls_grammar(
    tool_format: ToolFormat,
    functions: Sequence[FunctionTool],
    *,
    parallel: bool,
    special_tokens: Mapping[str, int],
    answer_schema: Mapping[str, Any] | None = None,
) -> str:
    """Calls of these functions and nothing else; or, with an answer_schema, one JSON value of it instead.

    Args:
        parallel: there may be several calls.
        special_tokens: the tokenizer's; a marker among them is that one token, not its letters.
    """
    more = f" ({_literal(tool_format.between, special_tokens)} call){{0,{_MAX_CALLS - 1}}}" if parallel else ""
    rules = [
        "start: answer | calls" if answer_schema is not None else "start: calls",
        f"calls: {_literal(tool_format.opening, special_tokens)} call{more} "
        f"{_literal(tool_format.closing, special_tokens)}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(functions))),
    ]
    if answer_schema is not None:
        rules.append(f"answer: {json_rule('response_format', answer_schema)}")
    for i, function in enumerate(functions):
        rules.append(f'call_{i}: {json.dumps(_head(tool_format, function))} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: {json_rule('tools', function.schema_of_arguments)}")
    return LLMatcher.grammar_from_lark("\n".join(rules))


def text_with_calls_grammar(tool_format: ToolFormat, functions: Sequence[FunctionTool]) -> str:
    """Any text; but where a call begins, it is one of these functions, with the arguments of those that are strict.

    The format has to mark each call.
    """
    tags = [
        StructTag(
            trigger=tool_format.marker or "",
            begin=tool_format.opening + _head(tool_format, function),
            grammar=schema_text("tools", function.schema_of_arguments if function.strict else ANY_OBJECT),
            end="}" + tool_format.closing,
        )
        for function in functions
    ]
    return StructTag.to_grammar(tags, assume_special=False)


def tool_prompt(tool_format: ToolFormat, functions: Sequence[FunctionTool]) -> str:
    """What a template that knows no tools has to be told about them."""
    told = [function.as_template_input() for function in functions]
    example = re.sub(r'"(.*?)": {}', r'"\1": {...}', tool_format.write([("function name", {})]))
    lines = ["You can call these functions:", *map(json.dumps, told), "To call one, answer with:", example]
    return "\n".join(lines)


def _head(tool_format: ToolFormat, function: FunctionTool) -> str:
    return f'{{"name": "{function.name}", "{tool_format.arguments_key}": '


def _literal(text: str, special_tokens: Mapping[str, int]) -> str:
    """A Lark term for this text, empty for none; special tokens in it are written by their ids."""
    known = [token for token in special_tokens if token in text]
    pieces = re.split(f"({'|'.join(map(re.escape, known))})", text) if known else [text]
    return " ".join(f"<[{special_tokens[p]}]>" if p in special_tokens else json.dumps(p) for p in pieces if p)
