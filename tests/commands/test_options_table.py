"""server/docs/operations.md has every option of `onebasis serve`, as ServeConfig has it."""

import re

import pytest

from onebasis.core.config import ServeConfig
from tests.commands.options_table import PAGE, SECTION, options_section


def test_the_page_has_the_options_as_they_are() -> None:
    (found,) = SECTION.findall(PAGE.read_text(encoding="utf-8"))
    assert found == options_section(), "write it anew: python -m tests.commands.options_table"


@pytest.mark.parametrize("name", ServeConfig.model_fields)
def test_every_option_says_what_it_does(name: str) -> None:
    assert ServeConfig.model_fields[name].description, "give the field a docstring: it is its --help, too"


def test_no_paragraph_of_the_page_breaks_off() -> None:
    prose = re.sub(r"^(```.*?^```|[|#].*?)$", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", prose)
    assert [text for text in paragraphs if text.strip() and not re.search(r"[.:)]$", text.strip())] == []
