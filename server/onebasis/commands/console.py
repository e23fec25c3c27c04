"""What the commands share: messages, progress bars, common options."""

from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

ModelOption = Annotated[Path, typer.Option(help="Folder of the base model.", envvar="ONEBASIS_MODEL")]
BasisOption = Annotated[Path, typer.Option(help="Basis file.", envvar="ONEBASIS_BASIS")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Compute threads.", envvar="ONEBASIS_THREADS")]
LARGEST_SEED: Final = 2**63 - 1  # that torch takes


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


class RateColumn(ProgressColumn):
    """Steps per second, once there is one."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f}/s")


def progress_bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,  # what stays on the screen is the result, or the one line that says what is wrong
    )


def complain(text: str) -> None:
    """One line on stderr."""
    Console(stderr=True).print(f"onebasis: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A result on stdout."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
