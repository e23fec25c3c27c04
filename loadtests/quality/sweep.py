"""Measures cell after cell: the first of the plan that is neither measured nor waiting for a basis."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from loadtests.common.errors import LoadTestError
from loadtests.quality import ways
from loadtests.quality.cells import Cell, Way, waiting
from loadtests.quality.material import Bases, Fleet, tasks_in
from loadtests.quality.results import append_row, read_rows
from loadtests.quality.scoring import Judge
from loadtests.quality.training import OnStep, Trained, distilled, fitted, lora_fitted
from loadtests.quality.ways import Answerer
from onebasis import __version__
from onebasis.fitting.fidelity import Updates
from onebasis.fitting.report.ways import factor_bytes, null_of
from onebasis.model.factors import Basis


@dataclass(frozen=True)
class Sweep:
    """One worker over one file of results. Trained files stay in the folder `<output>.files`."""

    fleet: Fleet
    bases: Bases
    plan: Sequence[Cell]
    output: Path

    def remaining(self) -> list[Cell]:
        """Cells without a result, in order, whether or not their basis is there."""
        return waiting(self.plan, [row["cell"] for row in read_rows(self.output)])

    def is_possible(self, cell: Cell) -> bool:
        """Whether the adapter and the basis it needs are there."""
        if cell.basis is not None and cell.k is not None and self.bases.find(cell.basis, cell.k) is None:
            return False
        return self.fleet.has_adapter(cell.task, self._adapter_seed(cell))

    def run(self, on_cell: Callable[[Cell], None], on_row: Callable[[dict[str, Any]], None], on_step: OnStep) -> None:
        """Until no possible cell is left. Bases that come meanwhile count."""
        while cell := next(filter(self.is_possible, self.remaining()), None):
            on_cell(cell)
            row = self.measure(cell, on_step)
            append_row(self.output, row)
            on_row(row)

    def measure(self, cell: Cell, on_step: OnStep) -> dict[str, Any]:
        """The result's row of one cell."""
        started_s = time.monotonic()
        basis = None if cell.basis is None or cell.k is None else self.bases.load(cell.basis, cell.k)
        trained = self._trained(cell, basis, on_step) if cell.is_trained else Trained(self._closed(cell, basis), {})
        answerer = trained.answerer
        score = self._judge(cell.task, self._adapter_seed(cell)).score(answerer.updates)
        row = {"cell": cell.as_json(), "size_bytes": answerer.size_bytes, **asdict(score), **trained.facts}
        if basis is not None:
            row |= {"basis": basis.spec.digest, "in_sample": cell.task in tasks_in(basis.spec)}
        if answerer.energy_kept is not None:
            row["energy_kept"] = round(answerer.energy_kept, 4)
        tool = f"onebasis {__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        return row | {"wall_s": round(time.monotonic() - started_s, 1), "tool": tool}

    def _closed(self, cell: Cell, basis: Basis | None) -> Answerer:
        if cell.way is Way.BARE:
            return Answerer({}, 0)
        if cell.way is Way.MEAN:
            return Answerer(self._mean, 0)
        original = self._original(cell.task, cell.seed)
        if cell.way is Way.ORIGINAL:
            return Answerer(original, factor_bytes(original))
        if cell.way is Way.NULL:
            return Answerer(null_of(original, cell.seed), factor_bytes(original))
        if cell.way is Way.SVD and cell.k is not None:
            return ways.own_triplets(original, ways.core_bytes(original, cell.k))
        if basis is None:
            raise LoadTestError(f"{cell}: needs a basis")
        if cell.way is Way.MEAN_IMPORT:
            return ways.mean_and_import(original, self._mean, basis)
        return ways.imported(original, basis, cell.residual)

    def _trained(self, cell: Cell, basis: Basis | None, on_step: OnStep) -> Trained:
        if cell.way is Way.LORA:
            return lora_fitted(self.fleet, cell, on_step)
        if basis is None:
            raise LoadTestError(f"{cell}: needs a basis")
        folder = self.output.with_suffix(".files")
        folder.mkdir(exist_ok=True)
        name = "-".join(str(value) for value in cell.as_json().values())
        train = {Way.FIT: fitted, Way.DISTILL: distilled}[cell.way]
        return train(self.fleet, basis, cell, folder / f"{name}.coef.safetensors", on_step)

    def _adapter_seed(self, cell: Cell) -> int:
        """Which of the task's adapters the cell is about or beside: a fit is judged beside the first."""
        return 0 if cell.way in (Way.FIT, Way.LORA) else cell.seed

    @cached_property
    def _mean(self) -> Updates:
        return ways.mean_of_fleet(self.fleet)

    @cached_property
    def _original(self) -> Callable[[str, int], Updates]:
        return lru_cache(maxsize=4)(self.fleet.updates)

    @cached_property
    def _judge(self) -> Callable[[str, int], Judge]:
        def judge(task: str, seed: int) -> Judge:
            return Judge(self.fleet.base, self.fleet.validation(task), self._original(task, seed))

        return lru_cache(maxsize=32)(judge)
