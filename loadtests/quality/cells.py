"""What the sweep measures, cell by cell, in order of importance."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import sqrt
from typing import Any, Final

FIT_STEPS: Final = 180
LORA_STEPS: Final = 90
LORA_RATE: Final = 1e-3
SEEDS: Final = (0, 1)


class Way(StrEnum):
    """How a task is answered. All but the last three are closed forms: no training."""

    BARE = "bare"
    ORIGINAL = "original"  # the adapter as it is
    MEAN = "mean"  # the mean of the fleet's other adapters
    NULL = "null"  # random directions, the adapter's singular values
    SVD = "svd"  # the adapter's largest singular triplets, in the bytes of a core of k
    IMPORT = "import"  # projection, with a residual or without
    MEAN_IMPORT = "mean+import"  # the mean, and the projection of what differs from it
    DISTILL = "distill"
    FIT = "fit"
    LORA = "lora"  # of rank 8, from the task's items


TRAINED: Final = frozenset({Way.DISTILL, Way.FIT, Way.LORA})


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. None where a field means nothing for the way.

    seed: of the training, or of the null's directions; for an adapter 1 is the fleet's second adapter of the task.
    residual: rank of what an import keeps beside the cores.
    """

    task: str
    way: Way
    basis: str | None = None
    k: int | None = None
    form: str | None = None
    residual: int | None = None
    seed: int = 0
    steps: int | None = None
    learning_rate: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields that mean something; two cells are the same if this is."""
        fields = asdict(self) | {"way": str(self.way)}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def is_trained(self) -> bool:
        return self.way in TRAINED

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.as_json().items())


def closed_form_cells(tasks: Sequence[str], *, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Every way without training, for every task."""
    ways: list[dict[str, Any]] = [{"way": Way.BARE}]
    for seed in seeds:
        ways += [{"way": Way.ORIGINAL, "seed": seed}]
        ways += [{"way": Way.IMPORT, "basis": "fleet", "k": k, "form": "core", "seed": seed} for k in (16, 32, 64, 8)]
        ways += [
            {"way": Way.IMPORT, "basis": "fleet", "k": k, "form": "core", "residual": r, "seed": seed}
            for k in (16, 32)
            for r in (2, 4)
        ]
        ways += [{"way": Way.SVD, "k": k, "seed": seed} for k in (16, 32, 64)]
        ways += [{"way": Way.IMPORT, "basis": "random", "k": k, "form": "core", "seed": seed} for k in (16, 32)]
        ways += [{"way": Way.MEAN_IMPORT, "basis": "fleet", "k": k, "form": "core", "seed": seed} for k in (16, 32)]
        ways += [{"way": Way.NULL, "seed": seed}]
        if seed == seeds[0]:
            ways += [{"way": Way.MEAN}]
    return [Cell(task, **way) for way in ways for task in tasks]


def trained_cells(tasks: Sequence[str], grid: Sequence[str], *, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Every way with training for the tasks of the grid; for all tasks those that a target is about."""
    asked = [
        _fit("fleet", 16, "core"),
        _fit("base-svd", 16, "core"),
        _fit("fleet", 8, "core"),
        _fit("fleet", 32, "diag"),
    ]
    others = [_fit(basis, 16, "core") for basis in ("random", "mixed")]
    others += [{"way": Way.LORA, "steps": LORA_STEPS, "learning_rate": LORA_RATE}]
    others += [_distill("fleet", 16, "core"), _distill("fleet", 32, "diag")]
    others += [_fit(basis, 8, "core") for basis in ("base-svd", "random", "mixed")]
    others += [_fit(basis, 32, "diag") for basis in ("base-svd", "random", "mixed")]
    others += [_fit(basis, 32, "core") for basis in ("fleet", "base-svd", "random", "mixed")]
    others += [_fit(basis, k, "diag") for basis in ("fleet", "base-svd", "random", "mixed") for k in (16, 8)]
    cells = [Cell(task, seed=seeds[0], **way) for way in asked for task in tasks]
    cells += [Cell(task, seed=seeds[0], **way) for way in others for task in grid]
    return cells + [Cell(task, seed=seed, **way) for seed in seeds[1:] for way in asked + others for task in grid]


def learning_rate(form: str, k: int) -> float:
    """At which a step of Adam moves a site's update about as far as one of a k=16 core at 1.2e-2 does.

    Adam moves every number by about the rate, so the update by the rate times the square root of their count.
    """
    return float(f"{1.2e-2 * 16 / (k if form == 'core' else sqrt(k)):.2g}")


def waiting(cells: Iterable[Cell], done: Iterable[dict[str, Any]]) -> list[Cell]:
    """The cells that have no result yet, in their order."""
    found = {json.dumps(cell, sort_keys=True) for cell in done}
    return [cell for cell in cells if json.dumps(cell.as_json(), sort_keys=True) not in found]


def _fit(basis: str, k: int, form: str) -> dict[str, Any]:
    return _trained(Way.FIT, basis, k, form)


def _distill(basis: str, k: int, form: str) -> dict[str, Any]:
    return _trained(Way.DISTILL, basis, k, form)


def _trained(way: Way, basis: str, k: int, form: str) -> dict[str, Any]:
    rate = learning_rate(form, k)
    return {"way": way, "basis": basis, "k": k, "form": form, "steps": FIT_STEPS, "learning_rate": rate}
