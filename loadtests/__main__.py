"""Entry point: `python -m loadtests ...` measures, `python -m loadtests table FILE.json` prints Markdown."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtests import options
from loadtests.errors import LoadTestError
from loadtests.machine import describe_machine
from loadtests.measure import ask_and_plan, measure
from loadtests.record import Record, load_rows, save
from loadtests.report import markdown_table, print_results
from loadtests.settings import Settings
from loadtests.stats import RoundResult, table_rows

PROJECT = Path(__file__).resolve().parent.parent
TABLE_WIDTH = 140  # at least, also in a narrower terminal or a file: a table with numbers cut off is no use


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all well, 1 any error, 2 a wrong command line (raised by argparse)."""
    out = Console()
    out.width = max(out.width, TABLE_WIDTH)
    err = Console(stderr=True)
    try:
        if arguments[:1] == ["table"]:
            return _print_markdown(out, err, arguments[1:])
        return _measure_all(out, err, arguments)
    except LoadTestError as error:
        err.print(f"loadtests: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1


def _print_markdown(out: Console, err: Console, arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        err.print("usage: python -m loadtests table FILE.json", markup=False, highlight=False)
        return 2
    out.print(markdown_table(load_rows(Path(arguments[0]))), markup=False, highlight=False, soft_wrap=True)
    return 0


def _measure_all(out: Console, err: Console, arguments: Sequence[str]) -> int:
    settings = options.parse(arguments)
    if settings.json_path is not None and not settings.json_path.parent.is_dir():
        raise LoadTestError(f"--json {settings.json_path}: no folder {settings.json_path.parent}; create it first")
    machine = describe_machine(PROJECT)
    results = asyncio.run(_run_plan(settings, err))
    print_results(out, table_rows(results), results)
    if settings.json_path is not None:
        command = shlex.join(["python", "-m", "loadtests", *arguments])
        save(Record(command, machine, settings, results), settings.json_path)
    return 1 if any(result.n_errors for result in results) else 0


async def _run_plan(settings: Settings, err: Console) -> list[RoundResult]:
    runs = await ask_and_plan(settings)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=err, disable=not err.is_terminal, refresh_per_second=2)
    results: list[RoundResult] = []
    with progress:
        bar = progress.add_task("", total=sum(run.n_requests for run in runs))
        for run in runs:
            place = f"round {run.round_number}: {run.server.name}, {run.scenario}, {run.load.label}"
            progress.update(bar, description=place)
            results.append(await measure(run, settings, lambda: progress.advance(bar)))
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
