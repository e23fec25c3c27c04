"""Entry point: `python -m loadtests ...` measures, `python -m loadtests table FILE.json` prints Markdown."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtests.load import options
from loadtests.load.measure import ask_and_plan
from loadtests.load.record import load_rows
from loadtests.load.report import markdown_table
from loadtests.load.session import Session, guarded
from loadtests.load.stats import RoundResult


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all well, 1 any error, 2 a wrong command line (raised by argparse)."""
    return guarded("loadtests", _print_table if arguments[:1] == ["table"] else _measure, arguments)


def _print_table(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        Console(stderr=True).print("usage: python -m loadtests table FILE.json", markup=False, highlight=False)
        return 2
    table = markdown_table(load_rows(Path(arguments[1])))
    Console().print(table, markup=False, highlight=False, soft_wrap=True)
    return 0


def _measure(arguments: Sequence[str]) -> int:
    settings = options.parse(arguments)
    session = Session.begin(settings, shlex.join(["python", "-m", "loadtests", *arguments]))
    return session.finish(asyncio.run(_measure_all(session)))


async def _measure_all(session: Session) -> list[RoundResult]:
    return await session.measure(await ask_and_plan(session.settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
