"""The cost of the update itself: a layer's linear layers bare, with a shared basis, and as LoRA servers do it.

`python -m loadtests.micro [--json FILE]`. Milliseconds of one layer, averaged over several different ones so that their
weights come from memory as a model's do. The torch sides are the seven linear layers alone. The native sides are whole
steps over these layers (norms, attention over 64 tokens and a tiny head included), since the library has no smaller
piece: their difference is the update.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedConfig

from loadtests.common.arguments import BenchmarkParser, Measurement, numbers
from loadtests.common.processes import CpuUse, cpu_times, cpu_use
from loadtests.common.timing import Quartiles, interleave, quartiles
from loadtests.load.session import guarded
from loadtests.micro.sides import BARE_OF, Cell, Sides

BENCHMARK = "micro"
CELLS = "1:1,8:1,8:8,32:1,32:8,32:32,128:32"
_N_VOCAB = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked command line."""

    model: Path
    ks: tuple[int, ...]
    lora_rank: int
    residual_rank: int
    cells: tuple[Cell, ...]
    n_layers: int
    n_rounds: int
    n_threads: int
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """One side in one cell. tax: its median over that of the bare side of its kind; None for these themselves."""

    k: int
    n_tokens: int
    n_tasks: int
    side: str
    layer_ms: Quartiles
    tax: float | None


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all well, 1 a side's numbers are wrong."""
    return guarded("loadtests.micro", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    measurement = _parser().begin(arguments)
    settings = _settings(measurement)
    before = cpu_times(None)
    results = measure(settings)
    cpu = cpu_use(before, cpu_times(None), has_server=False)
    _print(results, cpu)
    measurement.save(
        settings=asdict(settings),
        results={"other_cores": cpu.other_cores, "cells": [asdict(result) for result in results]},
    )
    return 0


@torch.inference_mode()
def measure(settings: Settings) -> list[Result]:
    """All cells of all k; the sides of a cell take turns.

    Raises:
        LoadTestError: two ways to the same numbers disagree.
    """
    torch.set_num_threads(settings.n_threads)
    results: list[Result] = []
    for k in settings.ks:
        sides = Sides(
            _config(settings),
            k=k,
            rank=settings.lora_rank,
            residual_rank=settings.residual_rank,
            n_tasks=max(cell.n_tasks for cell in settings.cells),
            n_tokens=max(cell.n_tokens for cell in settings.cells),
            seed=settings.seed,
        )
        for cell in settings.cells:
            times_s = interleave(sides.of(cell, settings.seed), n_rounds=settings.n_rounds, least_s=0.02)
            results += cell_results(k, cell, times_s, settings.n_layers)
    return results


def cell_results(k: int, cell: Cell, times_s: dict[str, list[float]], n_layers: int) -> list[Result]:
    """From seconds of all layers to milliseconds of one, and what the tasks cost."""
    spread = {side: quartiles([1000 * time_s / n_layers for time_s in times]) for side, times in times_s.items()}
    return [
        Result(
            k=k,
            n_tokens=cell.n_tokens,
            n_tasks=cell.n_tasks,
            side=side,
            layer_ms=layer_ms,
            tax=layer_ms.median / spread[BARE_OF[side]].median if side in BARE_OF else None,
        )
        for side, layer_ms in spread.items()
    ]


def _config(settings: Settings) -> PreTrainedConfig:
    """The model's sizes, fewer layers, a tiny vocabulary."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(settings.model, local_files_only=True)
    config.num_hidden_layers = settings.n_layers
    config.vocab_size = _N_VOCAB
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    config.layer_types = None
    return config


def _print(results: Sequence[Result], cpu: CpuUse) -> None:
    table = Table(title="one decoder layer, ms", caption=f"other processes took {cpu.other_cores:.2f} cores meanwhile")
    for column in ("k", "tokens", "tasks", "side", "median", "quartiles", "times bare"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for r in results:
        spread = f"{r.layer_ms.q1:.3f} to {r.layer_ms.q3:.3f}"
        tax = "" if r.tax is None else f"{r.tax:.2f}"
        table.add_row(str(r.k), str(r.n_tokens), str(r.n_tasks), r.side, f"{r.layer_ms.median:.3f}", spread, tax)
    Console(width=110).print(table)


def _parser() -> BenchmarkParser:
    parser = BenchmarkParser(BENCHMARK, __doc__)
    add = parser.add_argument
    add("--k", type=numbers, default=(8, 16, 32, 64), metavar="K,..", help="widths of the basis [8,16,32,64]")
    add("--cells", type=_cells, default=_cells(CELLS), metavar="TOKENS:TASKS,..", help=f"[{CELLS}]")
    add("--lora-rank", type=int, default=16, metavar="R", help="of the LoRA sides [%(default)s]")
    add("--residual-rank", type=int, default=4, metavar="R", help="of the sides with a residual [%(default)s]")
    add("--layers", type=int, default=8, metavar="N", help="different layers in turn [%(default)s]")
    add("--rounds", type=int, default=9, metavar="N", help="[%(default)s]")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="[%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    return parser


def _settings(measurement: Measurement) -> Settings:
    asked = measurement.asked
    return Settings(
        model=measurement.subject.model,
        ks=asked.k,
        lora_rank=asked.lora_rank,
        residual_rank=asked.residual_rank,
        cells=asked.cells,
        n_layers=asked.layers,
        n_rounds=asked.rounds,
        n_threads=asked.threads,
        seed=asked.seed,
    )


def _cells(text: str) -> tuple[Cell, ...]:
    cells = tuple(Cell(*(int(number) for number in part.split(":"))) for part in text.split(","))
    if any(not 1 <= cell.n_tasks <= cell.n_tokens for cell in cells):
        raise argparse.ArgumentTypeError(f"{text}: a cell has at least one task and no more tasks than tokens")
    return cells


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
