"""The sweep's trained coefficients through the HTTP server: `python -m loadtests.quality served RESULTS ...`.

What the sweep scored with transformers is registered and asked as a client would, on the same unseen items.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import torch
from rich.console import Console

from loadtests.common.errors import LoadTestError
from loadtests.common.files import check_target, save_results
from loadtests.common.machine import describe_machine
from loadtests.common.subject import Subject
from loadtests.quality.material import Bases
from loadtests.quality.results import read_rows
from onebasis.demo.client import ask, register_all
from onebasis.fitting.data import ChatExample, read_jsonl

_MAX_TOKENS = 64
_CONCURRENCY = 16
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServedScore:
    """Exact match of one task's greedy answers; the first two as the sweep measured them.

    original: the adapter from the fleet. trained: the file, in transformers. served: the file, through the server.
    """

    task: str
    original: float | None
    trained: float
    served: float
    n_items: int


def main(arguments: Sequence[str]) -> int:
    """Score all tasks of one kind of cell, print the table, write the file."""
    asked = _parse(arguments)
    check_target(asked.json)
    scores = score_served(
        read_rows(asked.results),
        folder=asked.results.with_suffix(".files"),
        model=asked.model,
        basis=_basis(asked),
        data=asked.tasks_data,
        chosen={"basis": asked.basis, "k": asked.k, "form": asked.form, "seed": asked.seed},
    )
    Console(soft_wrap=True, highlight=False, markup=False).print(markdown(scores), end="")
    if asked.json is not None:
        save_results(
            asked.json,
            benchmark="quality-served",
            command=f"python -m loadtests.quality served FILE --basis {asked.basis} --k {asked.k} --form {asked.form}",
            machine=describe_machine(),
            settings={"basis": asked.basis, "k": asked.k, "form": asked.form, "seed": asked.seed},
            results={"scores": scores},
        )
    return 0


def score_served(
    rows: Sequence[Row], *, folder: Path, model: Path, basis: Path, data: Path, chosen: Mapping[str, object]
) -> list[ServedScore]:
    """Serve the files of the `fit` cells that have these fields, all of them at once, and ask every task its items.

    Args:
        folder: where the sweep keeps the files it trained.
        data: of `<task>.val.jsonl`.

    Raises:
        LoadTestError: no such cell is measured yet.
    """
    fits = {
        row["cell"]["task"]: row
        for row in rows
        if row["cell"]["way"] == "fit" and chosen.items() <= row["cell"].items()
    }
    if not fits:
        raise LoadTestError(f"no fit with {dict(chosen)} in the results; run the sweep first")
    originals = {
        row["cell"]["task"]: row["exact_match"]
        for row in rows
        if (row["cell"]["way"], row["cell"]["seed"]) == ("original", 0)
    }
    with tempfile.TemporaryDirectory() as scratch:
        files = {task: folder / row["file"] for task, row in fits.items()}
        with Subject(model, basis, tuple(files.values())).server(Path(scratch)) as server:
            asyncio.run(register_all(server.url, files))
            served = {task: asyncio.run(score_task(server.url, task, data / f"{task}.val.jsonl")) for task in fits}
    return [
        ServedScore(task, originals.get(task), row["exact_match"], *served[task]) for task, row in sorted(fits.items())
    ]


def markdown(scores: Sequence[ServedScore]) -> str:
    """A table by task, with the means; the share only over tasks whose original adapter is measured."""
    lines = ["| task | original LoRA | trained, in transformers | through the server |", "|---|---:|---:|---:|"]
    lines += [f"| {s.task} | {_number(s.original)} | {s.trained:.3f} | {s.served:.3f} |" for s in scores]
    pairs = [(s.original, s.served) for s in scores if s.original is not None]
    trained, served = fmean(s.trained for s in scores), fmean(s.served for s in scores)
    original = fmean(before for before, _ in pairs) if pairs else None
    lines.append(f"| mean | {_number(original)} | {trained:.3f} | {served:.3f} |")
    if original:
        share = fmean(after for _, after in pairs) / original
        lines += ["", f"Served over original, {len(pairs)} tasks: {share:.3f}"]
    return "\n".join(lines) + "\n"


async def score_task(url: str, task: str, path: Path) -> tuple[float, int]:
    """(exact match, items) of greedy answers, white space at the ends aside as in the sweep."""
    examples = [example for example in read_jsonl(path) if isinstance(example, ChatExample)]
    gate = asyncio.Semaphore(_CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def is_right(example: ChatExample) -> bool:
            async with gate:
                answer = await ask(client, task, example.messages[0].content, max_tokens=_MAX_TOKENS)
            return answer.text.strip() == example.messages[-1].content.strip()

        right = await asyncio.gather(*map(is_right, examples))
    return sum(right) / len(examples), len(examples)


def _basis(asked: argparse.Namespace) -> Path:
    path = Bases(asked.bases, torch.bfloat16, ()).find(asked.basis, asked.k)
    if path is None:
        raise LoadTestError(f"no {asked.basis} basis of k={asked.k} in --bases; build it first")
    return path


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtests.quality served", description=__doc__)
    add = parser.add_argument
    add("results", type=Path, help="of the sweep; the files that it trained lie beside it")
    add("--model", type=Path, required=True, metavar="DIR")
    add("--bases", type=Path, required=True, nargs="+", metavar="DIR")
    add("--tasks-data", type=Path, required=True, metavar="DIR", help="<task>.val.jsonl")
    add("--basis", default="fleet", help="kind [%(default)s]")
    add("--k", type=int, default=16, help="[%(default)s]")
    add("--form", default="core", choices=("core", "diag"), help="[%(default)s]")
    add("--seed", type=int, default=0, help="of the training [%(default)s]")
    add("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)
