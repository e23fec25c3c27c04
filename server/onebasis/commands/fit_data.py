"""Which files hold which task's examples, as the options of `onebasis fit` say it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from onebasis.core.errors import SetupError
from onebasis.core.ids import parse_task_name
from onebasis.fitting.coefficient_files import SUFFIX

_JSONL: Final = ".jsonl"


def task_files(option: str, values: Sequence[str], task: str | None) -> dict[str, Path]:
    """Files by task name, in the order given.

    Args:
        option: the option's name, for messages.
        values: each `NAME=FILE`, a folder of `NAME.jsonl`, or a file.
        task: whose a file without a NAME is; the one it is named after when None.

    Raises:
        SetupError: a folder without such files, a task that comes twice.
        InvalidTaskName: a name that no task can have.
    """
    found: list[tuple[str, Path]] = []
    for value in values:
        name, is_named, path = value.partition("=")
        if Path(value).is_dir():
            files = sorted(Path(value).glob(f"*{_JSONL}"))
            if not files:
                raise SetupError(f"{option} {value}: no *{_JSONL} in this folder; name each file after its task")
            found += [(file.name.removesuffix(_JSONL), file) for file in files]
        elif is_named and not Path(value).is_file():
            found.append((name, Path(path)))
        else:
            found.append((task or Path(value).name.removesuffix(_JSONL), Path(value)))
    names = [parse_task_name(name) for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SetupError(f"{option}: task {twice!r} comes twice; give each task one file")
    return dict(found)


def output_files(output: Path, tasks: Sequence[str]) -> Mapping[str, Path]:
    """Where each task's coefficients go: `output` itself if it is such a file's name, else a file in that folder.

    Raises:
        SetupError: one file for several tasks.
    """
    if not output.name.endswith(".safetensors"):
        return {task: output / f"{task}{SUFFIX}" for task in tasks}
    if len(tasks) > 1:
        raise SetupError(f"--output {output} is one file, there are {len(tasks)} tasks; give a folder")
    return {tasks[0]: output}
