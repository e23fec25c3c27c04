"""What `onebasis fit` prints when it is done."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from onebasis.core.ids import Digest
from onebasis.fitting.training.run import FitReport


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was trained for a task, how that went, and where it was written; None for a LoRA that was not.

    basis: that the file is for; None for a LoRA, which has none.
    """

    trained: str
    task: str
    report: FitReport
    output: Path | None
    basis: Digest | None


def print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """A table, task after task."""
    table = Table("task", "trained", "bytes", "exact match: base", "task", "items", "loss", "step kept", "of", "s")
    for outcome in _by_task(outcomes):
        report = outcome.report
        run = report.training
        table.add_row(
            outcome.task,
            outcome.trained,
            str(report.size_bytes),
            _score(report.base_score),
            _score(report.task_score),
            str(report.n_validation),
            f"{run.first_loss:.3f} -> {run.final_loss:.3f}",
            str(run.kept_step),
            str(run.n_steps),
            f"{run.train_s:.0f}",
        )
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)


def outcomes_as_json(outcomes: Sequence[Outcome]) -> str:
    """A list of reports, task after task."""
    rows = [
        asdict(outcome.report)
        | {
            "trained": outcome.trained,
            "output": None if outcome.output is None else str(outcome.output),
            "basis": outcome.basis,
        }
        for outcome in _by_task(outcomes)
    ]
    return json.dumps(rows, indent=1)


def _by_task(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Tasks in the order in which they first come, what was trained for one beside each other."""
    order = list(dict.fromkeys(outcome.task for outcome in outcomes))
    return sorted(outcomes, key=lambda outcome: order.index(outcome.task))


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.2f}"
