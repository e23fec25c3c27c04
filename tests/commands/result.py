"""What a command left behind."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    exit_code: int
    out: str
    err: str

    def rows(self, *starts: str) -> list[list[str]]:
        """The cells of the lines of tables whose first cell is one of these."""
        cells = [re.split(r"\s*[│┃|]\s*", line.strip(" │┃|")) for line in self.out.splitlines()]
        return [row for row in cells if row[0] in starts]


def refused(result: Result, complaint: str) -> None:
    """Exit code 2 and one line on stderr that matches (a progress bar that was taken away may leave an empty one)."""
    assert result.exit_code == 2, result
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert len(lines) == 1, result.err
    assert re.search(complaint, lines[0]), lines[0]
    assert lines[0].startswith("onebasis: ")
    assert "\x1b" not in lines[0]


def misused(result: Result, option: str) -> None:
    """Exit code 2 and the option's name, in the usage message of the command-line library."""
    assert result.exit_code == 2, result
    assert "Traceback" not in result.err
    assert f"Invalid value for '{option}'" in result.err
