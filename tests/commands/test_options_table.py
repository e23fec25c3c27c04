"""server/docs/operations.md has every option of `onebasis serve`, as ServeConfig has it."""

import pytest

from onebasis.core.config import ServeConfig
from tests.commands.options_table import PAGE, SECTION, options_section


def test_the_page_has_the_options_as_they_are() -> None:
    (found,) = SECTION.findall(PAGE.read_text(encoding="utf-8"))
    assert found == options_section(), "write it anew: python -m tests.commands.options_table"


@pytest.mark.parametrize("name", ServeConfig.model_fields)
def test_every_option_says_what_it_does(name: str) -> None:
    assert ServeConfig.model_fields[name].description, "give the field a docstring: it is its --help, too"
