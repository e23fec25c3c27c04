"""server/docs/generation.md names every field of the two bodies, and no other."""

import re
from pathlib import Path

import pytest

from onebasis.api.schemas import ChatBody, CompletionBody, GenerationBody
from onebasis.api.tool_formats import TOOL_FORMATS

PAGE = (Path(__file__).parents[2] / "server" / "docs" / "generation.md").read_text(encoding="utf-8")


def first_column(heading: str) -> list[str]:
    """The names in the first column of the table of a section."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


@pytest.mark.parametrize(("heading", "body"), [("Completions", CompletionBody), ("Chat", ChatBody)])
def test_every_field_of_a_body_is_explained(heading: str, body: type[GenerationBody]) -> None:
    assert sorted(first_column("Fields of both") + first_column(heading)) == sorted(body.model_fields)


def test_every_tool_format_is_shown() -> None:
    section = PAGE.partition("## Tools\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(TOOL_FORMATS)
