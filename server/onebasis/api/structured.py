"""What a request says about the shape of its answer, and the grammar that enforces it.

Grammars are in llguidance's dialect of Lark, which can hold regexes and JSON schemas.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from llguidance import LLMatcher, grammar_from
from pydantic import Field, model_validator

from onebasis.api.json_object import JsonObject
from onebasis.core.errors import InvalidGrammar, InvalidParameter

ANY_OBJECT: Final[Mapping[str, Any]] = MappingProxyType({"type": "object"})
_JSON_STYLE: Final[Mapping[str, Any]] = MappingProxyType(
    {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
)
"""One way to write a value, json.dumps's: a weak model can't lose itself in white space."""


class JsonSchema(JsonObject):
    """OpenAI's wrapping of a schema. The schema is enforced whether `strict` is asked for or not."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    json_schema: dict[str, Any] = Field(default_factory=lambda: dict(ANY_OBJECT), alias="schema")
    strict: bool = False


class ResponseFormat(JsonObject):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise InvalidParameter("response_format", "json_schema goes with type=json_schema, and with no other")
        return self


class StructuredOutputs(JsonObject):
    """vLLM's `structured_outputs`: exactly one of a JSON schema, a regex, a list of texts, a Lark or GBNF grammar."""

    json_schema: dict[str, Any] | None = Field(default=None, alias="json")
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, fail_fast=True)] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        if len(self.model_fields_set) != 1:
            raise InvalidParameter("structured_outputs", "needs exactly one of json, regex, choice, grammar")
        return self


def answer_grammar(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> tuple[str, str] | None:
    """(parameter, grammar) that the request asks its text to follow; None for any text.

    Raises:
        InvalidParameter: both parameters ask for one.
        InvalidGrammar: it can't even be written down.
    """
    schema = None if response_format is None else response_schema(response_format)
    if schema is not None and structured_outputs is not None:
        raise InvalidParameter("structured_outputs", "response_format asks for a shape, too; give one of them")
    if schema is not None:
        return "response_format", json_grammar("response_format", schema)
    if structured_outputs is None:
        return None
    param = "structured_outputs"
    if structured_outputs.json_schema is not None:
        return param, json_grammar(param, structured_outputs.json_schema)
    if structured_outputs.regex is not None:
        return param, regex_grammar(structured_outputs.regex)
    if structured_outputs.choice is not None:
        return param, choice_grammar(structured_outputs.choice)
    return param, _written_grammar(param, structured_outputs.grammar or "")


def response_schema(response_format: ResponseFormat) -> Mapping[str, Any] | None:
    """The JSON schema that `response_format` asks for; None for plain text."""
    if response_format.json_schema is not None:
        return response_format.json_schema.json_schema
    return ANY_OBJECT if response_format.type == "json_object" else None


def json_grammar(param: str, schema: Mapping[str, Any]) -> str:
    """One JSON value of this schema."""
    return LLMatcher.grammar_from_lark(f"start: {json_rule(param, schema)}")


def json_rule(param: str, schema: Mapping[str, Any]) -> str:
    """The same as the right side of a Lark rule. References are looked up within this schema."""
    return "%json " + schema_text(param, schema)


def schema_text(param: str, schema: Mapping[str, Any]) -> str:
    """A JSON schema as text, with the one way to write its values."""
    try:
        return json.dumps({**schema, "x-guidance": dict(_JSON_STYLE)})
    except RecursionError as error:
        raise InvalidGrammar(param, "the JSON schema is nested too deeply") from error


def regex_grammar(regex: str) -> str:
    """A text that the regex matches as a whole."""
    (grammar,) = json.loads(LLMatcher.grammar_from_regex(regex))["grammars"]
    lark: str = grammar["lark_grammar"]
    return lark


def choice_grammar(texts: Sequence[str]) -> str:
    """One of these texts."""
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, texts)))


def _written_grammar(param: str, text: str) -> str:
    try:
        return grammar_from("grammar", text)
    except ValueError as error:
        raise InvalidGrammar(param, str(error)) from error
