"""The client repeats two tables of the server: its errors, and the fields of its bodies. Both must stay equal."""

import inspect
import re
from pathlib import Path

import pytest

from onebasis.api import schemas, structured, tenants, tools
from onebasis.core import errors as server_errors
from onebasis.identity import errors as identity_errors
from onebasis.identity.caller import Scope as ServerScope
from onebasis_client import ApiError, access, api_errors, messages, options

DOCUMENT = Path(__file__).parents[2] / "server" / "docs" / "errors.md"
CODES = {
    cls.code: cls
    for module in (server_errors, identity_errors)
    for cls in vars(module).values()
    if inspect.isclass(cls)
    and issubclass(cls, server_errors.ServeError)
    and not issubclass(cls, server_errors.SetupError)
    and "code" in vars(cls)
}
NOT_OPTIONS = {"model", "prompt", "messages", "stream", "stream_options"}  # arguments, or the method's own


def source_of(cls: type[server_errors.ServeError]) -> str:
    """The class that the client needs."""
    (parent,) = cls.__bases__
    parent_name = "ApiError" if parent is server_errors.ServeError else parent.__name__
    return f'class {cls.__name__}({parent_name}, code="{cls.code}"):\n    """{inspect.getdoc(cls)}"""'


def test_every_code_of_the_server_has_a_class_and_no_class_is_left_over():
    missing = [source_of(cls) for code, cls in CODES.items() if code not in api_errors.ERRORS_BY_CODE]
    assert not missing, "add to onebasis_client/api_errors.py:\n\n\n" + "\n\n\n".join(missing)
    left_over = sorted(api_errors.ERRORS_BY_CODE.keys() - CODES.keys())
    assert not left_over, f"take out of onebasis_client/api_errors.py: {left_over}"


def test_every_code_that_the_document_gives_a_status_has_a_class():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert {code for code, _ in rows} == api_errors.ERRORS_BY_CODE.keys()


@pytest.mark.parametrize("code", CODES.keys() & api_errors.ERRORS_BY_CODE.keys())
def test_a_class_has_the_servers_name_and_the_servers_place_in_the_tree(code):
    ours, theirs = api_errors.ERRORS_BY_CODE[code], CODES[code]
    assert [cls.__name__ for cls in ours.__mro__ if issubclass(cls, ApiError)] == [
        "ApiError" if cls is server_errors.ServeError else cls.__name__
        for cls in theirs.__mro__
        if issubclass(cls, server_errors.ServeError)
    ]


BODIES = {
    options.GenerationOptions: schemas.GenerationBody,
    options.CompletionOptions: schemas.CompletionBody,
    options.ChatOptions: schemas.ChatBody,
    options.ChatPromptOptions: schemas.ChatPrompt,
    options.ResponseFormat: structured.ResponseFormat,
    options.JsonSchema: structured.JsonSchema,
    options.StructuredOutputs: structured.StructuredOutputs,
    messages.Message: schemas.ChatMessage,
    messages.TextPart: schemas.TextPart,
    messages.Tool: tools.Tool,
    messages.Function: tools.FunctionTool,
    messages.ToolChoice: tools.ToolChoice,
    messages.FunctionName: tools.FunctionChoice,
    messages.Call: tools.ToolCall,
    messages.CalledFunction: tools.CalledFunction,
    access.Limits: tenants.QuotaBody,
}


@pytest.mark.parametrize("ours", BODIES, ids=lambda ours: ours.__name__)
def test_a_typed_dict_has_the_fields_of_the_servers_body(ours):
    fields = {field.alias or name for name, field in BODIES[ours].model_fields.items()} - NOT_OPTIONS
    assert not fields - ours.__annotations__.keys(), f"{ours.__name__} of the client lacks these"
    assert not ours.__annotations__.keys() - fields, f"{ours.__name__}: the server does not know these"


@pytest.mark.parametrize("ours", BODIES, ids=lambda ours: ours.__name__)
def test_what_the_server_requires_a_typed_dict_requires(ours):
    required = {name for name, field in BODIES[ours].model_fields.items() if field.is_required()} - NOT_OPTIONS
    assert ours.__required_keys__ == required


def test_scopes_are_the_servers():
    assert {*access.Scope} == {*ServerScope}
