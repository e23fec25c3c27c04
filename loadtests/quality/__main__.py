"""Quality of every way to coefficients on a fleet of adapters: `python -m loadtests.quality`.

One JSON line a cell (a task answered in one way); cells that are in the file are not measured again, so a run can be
stopped and started at any time. Tasks of --held-out must not be in any fleet basis of --bases.
`python -m loadtests.quality table FILE` prints the results as Markdown, `... picture FILE SVG` draws them, and
`... served FILE` scores what was trained through the HTTP server.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from loadtests.common.errors import LoadTestError
from loadtests.load.session import guarded
from loadtests.quality import served
from loadtests.quality.cells import Cell, closed_form_cells, trained_cells
from loadtests.quality.material import Bases, Fleet
from loadtests.quality.results import read_rows
from loadtests.quality.summary import markdown, picture
from loadtests.quality.sweep import Sweep
from onebasis.fitting.training.loop import StepLoss
from onebasis.model.loader import load_base

_GUESSED_STEP_S = 2.0
_GUESSED_SCORE_S = 40.0
_NEWS_EVERY = 30


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all well, 1 what stopped the sweep, 2 a wrong command line."""
    commands = {"table": _table, "picture": _picture, "served": lambda arguments: served.main(arguments[1:])}
    return guarded("loadtests.quality", commands.get("".join(arguments[:1]), _measure), arguments)


def _table(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.quality table")
    parser.add_argument("results", type=Path)
    asked = parser.parse_args(arguments[1:])
    Console(soft_wrap=True, highlight=False, markup=False).print(markdown(read_rows(asked.results)), end="")
    return 0


def _picture(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.quality picture")
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    asked = parser.parse_args(arguments[1:])
    asked.svg.write_text(picture(read_rows(asked.results)), encoding="utf-8")
    return 0


def _measure(arguments: Sequence[str]) -> int:
    asked = _parse(arguments)
    torch.set_num_threads(asked.threads)
    base = load_base(asked.model, dtype=torch.bfloat16, device=torch.device("cpu"))
    fleet = Fleet(base, asked.fleet, asked.tasks_data, held_out=asked.held_out)
    sweep = Sweep(fleet, Bases(asked.bases, base.model.dtype, asked.held_out), _plan(asked), asked.output)
    out = Console(soft_wrap=True, highlight=False, markup=False)
    if asked.plan:
        print_plan(out, sweep)
        return 0
    os.nice(19)
    sweep.run(
        on_cell=lambda cell: out.print(f"{cell}"),
        on_row=lambda row: out.print(f"  exact {row['exact_match']:.2f}, KL {row['kl']:.3f}, {row['wall_s']:.0f} s"),
        on_step=lambda step: _print_step(out, step),
    )
    left = sweep.remaining()
    if left:
        out.print(f"{len(left)} cells wait for a basis or an adapter that is not there, first {left[0]}")
    return 0


def print_plan(out: Console, sweep: Sweep) -> None:
    """The cells that are left, in order, with the time they will have taken by their end."""
    rows = read_rows(sweep.output)
    until_s = 0.0
    for cell in sweep.remaining():
        is_possible = sweep.is_possible(cell)
        until_s += estimated_s(cell, rows) if is_possible else 0.0
        out.print(f"{until_s / 3600:6.2f} h  {cell}" if is_possible else f"  waits  {cell}")


def estimated_s(cell: Cell, rows: Sequence[dict[str, Any]]) -> float:
    """From the cells of this way that are measured, per step; a guess without any."""
    alike = [row for row in rows if row["cell"]["way"] == cell.way]
    n_steps = cell.steps or 1
    if alike:
        return n_steps * float(median(row["wall_s"] / row["cell"].get("steps", 1) for row in alike))
    return _GUESSED_SCORE_S + _GUESSED_STEP_S * (cell.steps or 0)


def _plan(asked: argparse.Namespace) -> list[Cell]:
    closed = closed_form_cells(asked.held_out) + closed_form_cells(asked.in_sample, seeds=(0,))
    trained = trained_cells(asked.held_out, asked.grid or asked.held_out)
    return {"closed-form": closed, "trained": trained, "all": closed + trained}[str(asked.stage)]


def _print_step(out: Console, step: StepLoss) -> None:
    if step.step % _NEWS_EVERY == 0:
        out.print(f"  step {step.step}: loss {step.loss:.3f}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="base model")
    add("--fleet", type=Path, required=True, metavar="DIR", help="PEFT adapters, a folder each, named by task")
    add("--tasks-data", type=Path, required=True, metavar="DIR", help="<task>.train.jsonl and <task>.val.jsonl")
    add("--bases", type=Path, required=True, nargs="+", metavar="DIR", help="folders of *.basis.safetensors")
    add("--output", type=Path, required=True, metavar="FILE", help="JSON lines; what is there is kept")
    add("--held-out", type=_names, required=True, metavar="TASK,..", help="tasks that no fleet basis has seen")
    add("--in-sample", type=_names, default=(), metavar="TASK,..", help="others, for the closed forms alone")
    add("--grid", type=_names, default=(), metavar="TASK,..", help="held-out tasks of the whole grid [all of them]")
    add("--stage", choices=("closed-form", "trained", "all"), default="all", help="[%(default)s]")
    add("--threads", type=int, default=1, metavar="N", help="[%(default)s]")
    add("--plan", action="store_true", help="list the cells that are left, and stop")
    asked = parser.parse_args(arguments)
    for folder in (asked.fleet, asked.tasks_data, asked.output.parent, *asked.bases):
        if not folder.is_dir():
            raise LoadTestError(f"{folder}: no such folder")
    return asked


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
