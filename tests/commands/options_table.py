"""The section on options of server/docs/operations.md, from ServeConfig: `python -m tests.commands.options_table`."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from onebasis.core.config import ServeConfig

PAGE = Path(__file__).parents[2] / "server" / "docs" / "operations.md"
INTRODUCTION = """Of `onebasis serve`, as `--help` prints them; a test compares. Each is a variable of the environment, too: `ONEBASIS_` and its
name in capitals, as `ONEBASIS_MAX_RUNNING=32` or `ONEBASIS_PREFIX_CACHE=false`; the command line comes first. A list
(`--cors-origin`, which may be repeated) is written with spaces between its items. One that is on is switched off by `--no-...`.
Other commands read those of these variables that they have an option for (`ONEBASIS_MODEL`, `ONEBASIS_BASIS`, `ONEBASIS_THREADS`,
`ONEBASIS_STORE`). The store is by default `onebasis.db` in the folder that a command was started in. The compiled step, and
`onebasis demo` its model, are kept in the user's cache, `~/.cache/onebasis` (`XDG_CACHE_HOME`; for the model `ONEBASIS_CACHE`)."""  # noqa: E501
SECTION = re.compile(r"^## All options\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def options_section() -> str:
    """From its heading to the end of the page, or to the next heading."""
    rows = [f"| {_option(name, f)} | {_default(f)} | {_text(f)} |" for name, f in ServeConfig.model_fields.items()]
    return "\n".join(
        [
            "## All options",
            INTRODUCTION,
            "",
            "| option | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _option(name: str, field: FieldInfo) -> str:
    words = _words(field.annotation)
    return f"`--{name.replace('_', '-')}`{' ' + ', '.join(words) if words else ''}"


def _words(annotation: Any) -> tuple[str, ...]:
    """Those that are allowed where not everything is."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return "" if field.default in (None, []) else f"`{field.default}`"


def _text(field: FieldInfo) -> str:
    text = " ".join((field.description or "").split())
    return re.sub(r"(<\w+>|\*\.safetensors)", r"`\1`", text).replace("|", "\\|")


def main() -> None:
    """Write the section anew."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(SECTION.sub(lambda _: options_section(), page), encoding="utf-8")


if __name__ == "__main__":
    main()
