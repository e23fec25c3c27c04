"""The client repeats two tables of the server: its errors, and the options of generation. Both must stay equal."""

import inspect
import re
from pathlib import Path

import pytest

from onebasis.api.schemas import ChatBody, CompletionBody, GenerationBody
from onebasis.core import errors as server_errors
from onebasis_client import ApiError, api_errors
from onebasis_client.options import ChatOptions, CompletionOptions, GenerationOptions

DOCUMENT = Path(__file__).parents[2] / "server" / "docs" / "errors.md"
CODES = {
    cls.code: cls
    for cls in vars(server_errors).values()
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


@pytest.mark.parametrize(
    ("options", "body"),
    [(GenerationOptions, GenerationBody), (CompletionOptions, CompletionBody), (ChatOptions, ChatBody)],
)
def test_the_options_are_the_fields_of_the_servers_body(options, body):
    fields = body.model_fields.keys() - NOT_OPTIONS
    assert not fields - options.__annotations__.keys(), f"{options.__name__} in onebasis_client/options.py lacks these"
    assert not options.__annotations__.keys() - fields, f"{options.__name__}: the server does not know these"
