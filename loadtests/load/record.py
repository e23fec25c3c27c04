"""The JSON file of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from loadtests.common.errors import LoadTestError
from loadtests.common.files import load_results, save_results
from loadtests.common.machine import Machine
from loadtests.load.settings import Settings
from loadtests.load.stats import RoundResult, Row, table_rows

BENCHMARK = "loadtests"


def save(
    path: Path,
    *,
    command: str,
    machine: Machine,
    settings: Settings,
    rounds: Sequence[RoundResult],
    more: Mapping[str, object],
) -> None:
    """Write the record; every number of its table can be recomputed from its rounds. `more` are further keys."""
    results = {
        **more,
        "rounds": [asdict(result) for result in rounds],
        "table": [asdict(row) for row in table_rows(rounds)],
    }
    save_results(path, benchmark=BENCHMARK, command=command, machine=machine, settings=settings, results=results)


def load_rows(path: Path) -> list[Row]:
    """Rows of the table of a saved run.

    Raises:
        LoadTestError: the file cannot be read or is not such a file.
    """
    payload = load_results(path, BENCHMARK)
    try:
        return [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in payload["table"]]
    except (KeyError, TypeError):
        raise LoadTestError(f"{path}: not a file written by --json") from None
