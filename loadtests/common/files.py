"""The JSON file of a benchmark: what was asked, where it ran, what came out."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from loadtests.common.errors import LoadTestError
from loadtests.common.machine import PROJECT, Machine


def check_target(path: Path | None) -> None:
    """Raises LoadTestError before an hour is spent on results that could not be written."""
    if path is not None and not path.parent.is_dir():
        raise LoadTestError(f"--json {path}: no folder {path.parent}; create it first")


def save_results(
    path: Path, *, benchmark: str, command: str, machine: Machine, settings: object, results: Mapping[str, object]
) -> None:
    """Write the file. Dataclasses become objects; `results` are keys of the file beside settings and machine."""
    write_json(
        path,
        {"format": file_format(benchmark), "command": command, "machine": machine, "settings": settings, **results},
    )


def write_json(path: Path, payload: Mapping[str, object]) -> None:
    """Raises ValueError: a number that is not finite."""
    path.write_text(json.dumps(payload, indent=1, default=_plain, allow_nan=False) + "\n", encoding="utf-8")


def load_results(path: Path, benchmark: str) -> dict[str, Any]:
    """Read a file of this benchmark.

    Raises:
        LoadTestError: the file cannot be read or is not such a file.
    """
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
        found = payload["format"]
    except OSError as error:
        raise LoadTestError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise LoadTestError(f"{path}: not a file written by --json") from None
    if found != file_format(benchmark):
        raise LoadTestError(f"{path}: format is {found!r}, this program reads {file_format(benchmark)!r}")
    return dict(payload)


def file_format(benchmark: str) -> str:
    """What `format` says in a file of this benchmark."""
    return f"onebasis-{benchmark}/1"


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return _published(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _published(path: Path) -> str:
    """Of the project or the home folder where it lies in one: where these are is nobody's business."""
    for folder, name in ((PROJECT, Path()), (Path.home(), Path("~"))):
        if path.is_relative_to(folder):
            return str(name / path.relative_to(folder))
    return str(path)
