"""The JSON file of a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from loadtests.errors import LoadTestError
from loadtests.machine import Machine
from loadtests.settings import Settings
from loadtests.stats import RoundResult, Row, table_rows

FORMAT = "onebasis-loadtests/1"


@dataclass(frozen=True, slots=True)
class Record:
    """All of a run that is kept. The table is computed from the rounds when it is written."""

    command: str
    machine: Machine
    settings: Settings
    rounds: Sequence[RoundResult]


def save(record: Record, path: Path) -> None:
    """Write the record; every number of the table can be recomputed from its rounds."""
    payload = {
        "format": FORMAT,
        **asdict(record),
        "table": [asdict(row) for row in table_rows(record.rounds)],
    }
    path.write_text(json.dumps(payload, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")


def load_rows(path: Path) -> list[Row]:
    """Rows of the table of a saved run.

    Raises:
        LoadTestError: the file cannot be read or is not such a file.
    """
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
        if payload["format"] != FORMAT:
            raise LoadTestError(f"{path}: format is {payload['format']!r}, this program reads {FORMAT!r}")
        return [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in payload["table"]]
    except OSError as error:
        raise LoadTestError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise LoadTestError(f"{path}: not a file written by --json") from None
