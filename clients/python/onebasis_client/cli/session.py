"""What the commands share: the connection that the options before them decide on, and KEY=VALUE arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

import typer

from onebasis_client.cli.output import Output
from onebasis_client.client import OneBasis


@dataclass(frozen=True, slots=True)
class Session:
    """What the options before the command decide."""

    client: OneBasis
    output: Output


class SessionContext(typer.Context):
    """The context of a command."""

    obj: Session


def pairs(items: Sequence[str], param: str) -> dict[str, str]:
    """`KEY=VALUE` each; a value may hold further `=`. Raises BadParameter, also for a key that comes twice."""
    found: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key or key in found:
            raise typer.BadParameter(f"needs KEY=VALUE, each key once, found {item!r}", param_hint=param)
        found[key] = value
    return found
