"""The demo: a real server, one concurrent batch over all demo tasks and the bare model, one upload in between."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from onebasis.demo.client import Answer, ask, register
from onebasis.demo.demo_pack import UPLOADED_BY_DEMO, DemoPack
from onebasis.demo.embedded_model import MODEL_NAME
from onebasis.demo.tasks import DEMO_TASKS

_MAX_TOKENS = 24
_N_SHOWN = 30
_LEAST_SHARE_RIGHT = 0.7


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One prompt, answered by the bare model and by the task."""

    task: str
    prompt: str
    bare: Answer
    answer: Answer
    is_right: bool


async def run_demo(url: str, pack: DemoPack, console: Console) -> bool:
    """Fill the server, ask it, print what it said. True if the tasks' answers are as good as they should be.

    Raises:
        httpx.HTTPError: a request failed.
    """
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        first = [task for task in pack.tasks() if task != UPLOADED_BY_DEMO]
        uploads_ms = [await register(client, task, pack.coefficients(task)) for task in first]
        console.print(
            f"registered {len(first)} tasks over HTTP, {_kilobytes(pack, first):.0f} KB each, "
            f"{sum(uploads_ms) / len(uploads_ms):.0f} ms each; asking all of them and the bare model at once ..."
        )
        started_s = time.monotonic()
        rows = await asyncio.gather(*(_ask_both(client, task) for task in first))
        batch_s = time.monotonic() - started_s
        upload_ms = await register(client, UPLOADED_BY_DEMO, pack.coefficients(UPLOADED_BY_DEMO))
        rows.append(await _ask_both(client, UPLOADED_BY_DEMO))
        console.print(_table(rows))
        console.print(
            f"{2 * len(first)} requests at once took {batch_s:.1f} s; {UPLOADED_BY_DEMO} was uploaded afterwards "
            f"in {upload_ms:.0f} ms and used at once"
        )
        console.print(_metrics_line((await client.get("/metrics")).text))
    n_right = sum(row.is_right for row in rows)
    console.print(f"{n_right} of {len(rows)} task answers are right")
    return n_right >= _LEAST_SHARE_RIGHT * len(rows)


async def _ask_both(client: httpx.AsyncClient, task: str) -> DemoRow:
    """The first unseen item of a task."""
    demo_task = DEMO_TASKS[task]
    (example,) = demo_task.examples("val", 1)
    bare, answer = await asyncio.gather(
        ask(client, MODEL_NAME, example.prompt, max_tokens=_MAX_TOKENS),
        ask(client, task, example.prompt, max_tokens=_MAX_TOKENS),
    )
    return DemoRow(task, example.prompt, bare, answer, demo_task.is_correct(answer.text, example.answer))


def _table(rows: list[DemoRow]) -> Table:
    table = Table(title="the same base model, bare and with each task's coefficients")
    table.add_column("task", min_width=max(len(row.task) for row in rows))
    for heading in ("prompt", "bare answer", "task answer"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", max_width=_N_SHOWN)
    table.add_column("", min_width=len("wrong"))
    table.add_column("ms", min_width=5, justify="right")
    for row in rows:
        table.add_row(
            row.task,
            _one_line(row.prompt),
            _one_line(row.bare.text),
            _one_line(row.answer.text),
            "right" if row.is_right else "wrong",
            f"{row.answer.duration_ms:.0f}",
        )
    return table


def _one_line(text: str) -> str:
    return " / ".join(text.split("\n")).strip()


def _kilobytes(pack: DemoPack, tasks: list[str]) -> float:
    return sum(pack.coefficients(task).stat().st_size for task in tasks) / len(tasks) / 1000


def _metrics_line(exposition: str) -> str:
    """A few numbers out of /metrics."""
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if not sample.labels.get("le")
    }
    n_steps = samples["onebasis_step_seconds_count"]
    per_step = samples["onebasis_distinct_tasks_per_step_sum"] / n_steps
    return (
        f"metrics: {n_steps:.0f} steps, {per_step:.1f} distinct tasks in a step on average, "
        f"{samples['vllm:generation_tokens_total']:.0f} tokens generated, "
        f"{samples['onebasis_task_registry_bytes'] / 1e6:.2f} MB of coefficients registered"
    )


def pack_options(model: Path, pack: DemoPack, store: Path) -> list[str]:
    """Options of `onebasis serve` for the demo's model and basis, with a registry in `store`."""
    return [
        *("--model", str(model)),
        *("--served-model-name", MODEL_NAME),
        *("--basis", str(pack.basis)),
        *("--store", f"sqlite:///{store}"),
    ]
