"""The commands and options that manifests call, against the commands as they are."""

from collections.abc import Iterator, Sequence
from typing import Any

import typer.main
from typer.core import TyperGroup

from onebasis.cli import app as server_app
from onebasis_client.cli.app import app as client_app

COMMANDS: dict[str, Any] = {
    "onebasis": typer.main.get_command(server_app),
    "onebasis-client": typer.main.get_command(client_app),
}


def resolve(line: Sequence[str]) -> list[Any]:
    """The command that a line calls, below the groups that it is in.

    Raises the library's UsageError where the line has a command or option that is not there.
    """
    command, words, parent, found = COMMANDS[line[0]], list(line[1:]), None, []
    while isinstance(command, TyperGroup):
        found.append(command)
        parent = command.make_context(command.name, words, parent=parent)
        _, command, words = command.resolve_command(parent, [*parent._protected_args, *parent.args])
    context = command.context_class(command, parent=parent)
    _, rest, _ = command.make_parser(context).parse_args(args=list(words))
    assert not [word for word in rest if word.startswith("-")], rest
    return [*found, command]


def variables(line: Sequence[str]) -> set[str]:
    """Environment variables that a command line reads: those of its options, and of the groups'."""
    return {name for command in resolve(line) for name in _variables(command)}


def _variables(command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = parameter.envvar or []
        yield from [names] if isinstance(names, str) else names
