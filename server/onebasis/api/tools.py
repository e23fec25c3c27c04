"""Tools as requests and messages spell them: OpenAI's fields."""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from onebasis.api.json_object import JsonObject
from onebasis.core.errors import InvalidParameter

MAX_TOOLS: Final = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionTool(JsonObject):
    """A function that the model may call; `parameters` is a JSON schema of its arguments, absent for none."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

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
