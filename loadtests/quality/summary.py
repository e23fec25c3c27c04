"""The sweep's results as Markdown tables and as one picture of quality by bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from loadtests.common.errors import LoadTestError
from loadtests.plots.chart import Line, line_chart

Row = dict[str, Any]

_LABELS: Final = {
    "bare": "bare model",
    "original": "original LoRA",
    "mean": "mean adapter",
    "null": "null of the adapter's strength",
    "svd": "own SVD",
    "import": "import",
    "mean+import": "mean + import",
    "distill": "distill",
    "fit": "fit",
    "lora": "LoRA r=8, trained",
}
_PICTURE_WAYS: Final = (
    "fit fleet core",
    "fit mixed core",
    "fit base-svd core",
    "fit random core",
    "fit fleet diag",
    "distill fleet core",
    "import fleet core",
    "own SVD",
)


@dataclass(frozen=True, slots=True)
class Summary:
    """One way: the mean over the tasks it is measured on, of each the mean over its seeds.

    share: its exact match over that of the original adapters of the same tasks; None where none is measured.
    """

    name: str
    line: str
    size_bytes: int
    n_tasks: int
    n_rows: int
    exact_match: float
    share: float | None
    answer_loss: float
    kl: float
    agreement: float


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """One for each way, in order of their first rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_name(row["cell"]), []).append(row)
    originals = {row["cell"]["task"]: row["exact_match"] for row in _first_originals(rows)}
    return [_summary(name, group, originals) for name, group in groups.items()]


def markdown(rows: Sequence[Row]) -> str:
    """All tables. Raises LoadTestError without rows."""
    if not rows:
        raise LoadTestError("no results yet")
    seen = {row["cell"]["task"] for row in rows if row.get("in_sample")}
    held_out = [row for row in rows if row["cell"]["task"] not in seen]
    parts = [
        f"## Tasks that no fleet basis has seen\n\n{_table(held_out)}",
        f"### By task: exact match\n\n{_by_task(held_out)}",
    ]
    if seen:
        inside = [row for row in rows if row["cell"]["task"] in seen]
        parts.append(f"## In-sample: the fleet bases were made from these tasks' adapters\n\n{_table(inside)}")
        parts.append(f"### In-sample, by task: exact match\n\n{_by_task(inside)}")
    return "\n\n".join(parts) + "\n"


def picture(rows: Sequence[Row]) -> str:
    """SVG: exact match by bytes, a line for each way; of the tasks alone that every way in it is measured on, and that
    no fleet basis has seen.

    Raises:
        LoadTestError: nothing of what it shows is measured, or no task in all of these ways.
    """
    seen = {row["cell"]["task"] for row in rows if row.get("in_sample")}
    held_out = [row for row in rows if row["cell"]["task"] not in seen]
    tasks_of = {
        way: {row["cell"]["task"] for row in held_out if _line(row["cell"]) == way}
        for way in {_line(row["cell"]) for row in held_out}.intersection(_PICTURE_WAYS)
    }
    if not tasks_of:
        raise LoadTestError("none of the ways in the picture is measured yet")
    tasks = sorted(set.intersection(*tasks_of.values()))
    if not tasks:
        raise LoadTestError(f"no task is measured in all of {', '.join(sorted(tasks_of))}")
    found = summaries([row for row in held_out if row["cell"]["task"] in tasks])
    sizes = sorted({one.size_bytes for one in found if one.line in tasks_of})
    lines = []
    for way in filter(tasks_of.__contains__, _PICTURE_WAYS):
        by_size = {one.size_bytes: one.exact_match for one in found if one.line == way}
        lines.append(Line(way, [by_size.get(size) for size in sizes]))
    lines += [Line(one.name, [one.exact_match] * len(sizes)) for one in found if one.line == "original LoRA"]
    title = f"Unseen items answered right, by size: {', '.join(tasks)}"
    return line_chart(title, "KiB a task", "exact match", [_kib(size) for size in sizes], lines)


def _summary(name: str, group: Sequence[Row], originals: dict[str, float]) -> Summary:
    by_task: dict[str, list[Row]] = {}
    for row in group:
        by_task.setdefault(row["cell"]["task"], []).append(row)

    def mean(number: str, tasks: Iterable[str] = by_task) -> float:
        return fmean(fmean(row[number] for row in by_task[task]) for task in tasks)

    compared = [task for task in by_task if originals.get(task)]
    return Summary(
        name=name,
        line=_line(group[0]["cell"]),
        size_bytes=round(fmean(row["size_bytes"] for row in group)),
        n_tasks=len(by_task),
        n_rows=len(group),
        exact_match=mean("exact_match"),
        share=mean("exact_match", compared) / fmean(originals[task] for task in compared) if compared else None,
        answer_loss=mean("answer_loss"),
        kl=mean("kl"),
        agreement=mean("agreement"),
    )


def _first_originals(rows: Iterable[Row]) -> Iterable[Row]:
    return (row for row in rows if row["cell"]["way"] == "original" and row["cell"].get("seed", 0) == 0)


def _table(rows: Sequence[Row]) -> str:
    head = ["way", "KiB a task", "tasks", "runs", "exact match", "of the LoRA's", "answer loss", "KL", "same answer"]
    lines = [
        [
            one.name,
            _kib(one.size_bytes),
            one.n_tasks,
            one.n_rows,
            f"{one.exact_match:.3f}",
            "" if one.share is None else f"{one.share:.2f}",
            f"{one.answer_loss:.3f}",
            f"{one.kl:.3f}",
            f"{one.agreement:.2f}",
        ]
        for one in summaries(rows)
    ]
    return _aligned(head, lines)


def _by_task(rows: Sequence[Row]) -> str:
    tasks = list(dict.fromkeys(row["cell"]["task"] for row in rows))
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(_name(row["cell"]), {}).setdefault(row["cell"]["task"], []).append(row["exact_match"])
    lines = [[name, *(_mean(by_task.get(task)) for task in tasks)] for name, by_task in scores.items()]
    return _aligned(["way", *tasks], lines)


def _mean(values: Sequence[float] | None) -> str:
    return "" if not values else f"{fmean(values):.2f}"


def _name(cell: Row) -> str:
    """A way without task and seed."""
    parts = [_line(cell)]
    parts += [f"k={cell['k']}"] if "k" in cell else []
    parts += [f"r={cell['residual']}"] if "residual" in cell else []
    parts += [f"{cell['steps']} steps"] if "steps" in cell else []
    return ", ".join(parts)


def _line(cell: Row) -> str:
    """What stays the same while the size grows."""
    parts = [_LABELS[cell["way"]], cell.get("basis"), cell.get("form")]
    return " ".join(part for part in parts if part) + (" + residual" if "residual" in cell else "")


def _kib(size_bytes: int) -> str:
    return f"{size_bytes / 1024:,.0f}"


def _aligned(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
