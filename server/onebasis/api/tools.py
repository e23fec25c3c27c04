"""Tools as requests and messages spell them: OpenAI's fields."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from onebasis.api.json_object import JsonObject
from onebasis.core.errors import InvalidParameter

MAX_TOOLS: Final = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def check_unicode(param: str, content: Mapping[str, Any]) -> None:
    """Raises InvalidParameter of JSON in which half of a surrogate pair stands alone: no tokenizer takes it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(param, f"has half of a surrogate pair: {error.object[error.start]!a}") from error
    except RecursionError as error:
        raise InvalidParameter(param, "is nested too deeply") from error


class FunctionTool(JsonObject):
    """A function that the model may call; `parameters` is a JSON schema of its arguments, absent for none."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    @field_validator("parameters", mode="after")
    @classmethod
    def _is_unicode(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        check_unicode("tools", parameters)
        return parameters

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return self.parameters or {"type": "object", "properties": {}, "additionalProperties": False}

    def as_template_input(self) -> dict[str, Any]:
        """As chat templates want it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": self.schema_of_arguments}}


class Tool(JsonObject):
    type: Literal["function"]
    function: FunctionTool


class FunctionChoice(JsonObject):
    name: FunctionName


class ToolChoice(JsonObject):
    """This function and no other."""

    type: Literal["function"]
    function: FunctionChoice


class CalledFunction(JsonObject):
    """`arguments` is the text of a JSON object, as the model wrote it."""

    name: FunctionName
    arguments: str

    def arguments_object(self) -> dict[str, Any]:
        """Raises InvalidParameter if the text is none."""
        try:
            found = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidParameter("messages", f"arguments of a call of {self.name} are not JSON: {error}") from error
        if not isinstance(found, dict):
            raise InvalidParameter("messages", f"arguments of a call of {self.name} are not a JSON object")
        check_unicode("messages", found)
        return found


class ToolCall(JsonObject):
    """A call in an assistant's message, as it was answered."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_template_input(self) -> dict[str, Any]:
        """As chat templates want it: arguments are an object."""
        function = {"name": self.function.name, "arguments": self.function.arguments_object()}
        return {"id": self.id, "type": "function", "function": function}
