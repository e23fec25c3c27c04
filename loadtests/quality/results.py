"""The sweep's results: JSON lines, one for each cell, appended when the cell is done."""

import json
import os
from pathlib import Path
from typing import Any

from loadtests.common.errors import LoadTestError
from loadtests.common.files import file_format

BENCHMARK = "quality"


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One line, on the disk when this returns. Raises ValueError: a number that is not finite."""
    line = json.dumps({"format": file_format(BENCHMARK), **row}, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows in their order; none without a file.

    Raises:
        LoadTestError: a line that is not of this benchmark, by number. Nothing is skipped.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            is_ours = row["format"] == file_format(BENCHMARK)
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            raise LoadTestError(
                f"{path}, line {number}: not a row of this sweep; remove the line or choose another file"
            )
        rows.append(row)
    return rows
