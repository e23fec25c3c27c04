"""One measurement from its plan to its table and file. Several command lines share it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtests.common.errors import LoadTestError
from loadtests.common.files import check_target
from loadtests.common.machine import Machine, describe_machine
from loadtests.load import record
from loadtests.load.measure import measure
from loadtests.load.plan import Run
from loadtests.load.report import print_results
from loadtests.load.settings import Settings
from loadtests.load.stats import RoundResult, table_rows

TABLE_WIDTH = 150  # at least, also in a narrower terminal or a file: a table with numbers cut off is no use


@dataclass(frozen=True, slots=True)
class Session:
    """What is known before the first request."""

    settings: Settings
    command: str
    machine: Machine
    out: Console
    err: Console

    @classmethod
    def begin(cls, settings: Settings, command: str) -> "Session":
        """Raises LoadTestError: the results could not be written where they shall go."""
        check_target(settings.json_path)
        out = Console()
        out.width = max(out.width, TABLE_WIDTH)
        return cls(settings, command, describe_machine(), out, Console(stderr=True))

    async def measure(self, runs: Sequence[Run]) -> list[RoundResult]:
        """Carry out runs in order, with a bar on a terminal."""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        bar = Progress(
            *columns,
            TimeRemainingColumn(),
            console=self.err,
            disable=not self.err.is_terminal,
            refresh_per_second=2,
        )
        results: list[RoundResult] = []
        with bar:
            line = bar.add_task("", total=sum(run.n_requests for run in runs))
            for run in runs:
                place = f"round {run.round_number}: {run.server.name}, {run.scenario}, {run.load.label}"
                bar.update(line, description=place)
                results.append(await measure(run, self.settings, lambda: bar.advance(line)))
        return results

    def finish(self, results: Sequence[RoundResult], more: Mapping[str, object] = MappingProxyType({})) -> int:
        """Print and save. Exit code: 0 all well, 1 any error. `more` goes into the file."""
        print_results(self.out, table_rows(results), results)
        if self.settings.json_path is not None:
            record.save(
                self.settings.json_path,
                command=self.command,
                machine=self.machine,
                settings=self.settings,
                rounds=results,
                more=more,
            )
        return 1 if any(result.n_errors for result in results) else 0


def guarded(program: str, main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Exit code of main; what stops it is one line on stderr and exit code 1."""
    try:
        return main(arguments)
    except LoadTestError as error:
        line = f"{program}: {error}"
        Console(file=sys.stderr).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
