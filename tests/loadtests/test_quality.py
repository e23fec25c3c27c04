"""The sweep measures each cell once, refuses a basis that has seen what is held out, and sums up what it measured."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from loadtests.common.errors import LoadTestError
from loadtests.common.files import file_format
from loadtests.quality import ways
from loadtests.quality.__main__ import estimated_s, main
from loadtests.quality.cells import Cell, Way, closed_form_cells, learning_rate, trained_cells, waiting
from loadtests.quality.material import Bases, Fleet
from loadtests.quality.results import append_row, read_rows
from loadtests.quality.summary import markdown, picture, summaries
from loadtests.quality.sweep import Sweep
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.fitting.data import chat_example, write_jsonl
from onebasis.fitting.low_rank import LowRankUpdate, inner_product
from onebasis.fitting.report.ways import null_of, scaled
from onebasis.model.loader import LoadedBase, load_base
from tests.api.tiny_model import TinyModel, save_tiny_model
from tests.fitting.peft.adapters import plain_adapter

CPU = torch.device("cpu")
TASKS = ("plural", "upper")
ITEMS = [("the cat", "sat"), ("the mat", "on"), ("a house", "food"), ("all the food", "ate")]


@dataclass(frozen=True)
class Lab:
    """A fleet on disk: two tasks, the first with a second adapter; a random and a base-svd basis of k=4."""

    folder: Path
    tiny: TinyModel
    base: LoadedBase

    def sweep(self, plan: list[Cell], output: Path) -> Sweep:
        fleet = Fleet(self.base, self.folder / "adapters", self.folder / "data", held_out=("plural",))
        bases = Bases([self.folder / "bases"], torch.float32, fleet.held_out)
        return Sweep(fleet, bases, plan, output)

    def run(self, plan: list[Cell], output: Path) -> list[dict[str, Any]]:
        """The rows of this run."""
        rows: list[dict[str, Any]] = []
        self.sweep(plan, output).run(lambda _: None, rows.append, lambda _: None)
        return rows


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the sweep runs; work this small is much slower on threads that have to wait for a core."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    for name in ("model", "adapters", "data", "bases"):
        (folder / name).mkdir()
    tiny = save_tiny_model(folder / "model")
    base = load_base(folder / "model", dtype=torch.float32, device=CPU)
    for seed, name in enumerate(("plural", "plural__s2", "upper")):
        plain_adapter(folder / "model", folder / "adapters" / name, seed)
    for task in TASKS:
        for part in ("train", "val"):
            write_jsonl(folder / "data" / f"{task}.{part}.jsonl", [chat_example(*item) for item in ITEMS])
    for kind in BasisKind:
        path = folder / "bases" / f"{kind}.basis.safetensors"
        build_basis(base, kind=kind, k=4, seed=0, path=path, progress=lambda _site: None)
    return Lab(folder, tiny, base)


def cell(way: Way, task: str = "plural", **fields: Any) -> Cell:
    return Cell(task, way, **fields)


# ---------------------------------------------------------------- cells and results


def test_every_cell_of_a_plan_is_there_once() -> None:
    plan = closed_form_cells(TASKS) + trained_cells(TASKS, TASKS)
    assert len({str(cell) for cell in plan}) == len(plan)
    assert [cell.task for cell in plan[:2]] == list(TASKS), "a way is measured on all tasks before the next begins"
    first = trained_cells(TASKS, TASKS)[0]
    assert (first.way, first.basis, first.k, first.form) == (Way.FIT, "fleet", 16, "core")


def test_outside_of_the_grid_only_what_the_targets_are_about_is_trained() -> None:
    plan = trained_cells(TASKS, TASKS[:1])
    elsewhere = [cell for cell in plan if cell.task != TASKS[0]]
    assert {(cell.basis, cell.k, cell.form, cell.seed) for cell in elsewhere} == {
        ("fleet", 16, "core", 0),
        ("base-svd", 16, "core", 0),
        ("fleet", 8, "core", 0),
        ("fleet", 32, "diag", 0),
    }
    assert {cell.basis for cell in plan} == {None, "fleet", "base-svd", "random", "mixed"}


def test_the_learning_rate_moves_updates_of_all_sizes_alike() -> None:
    assert learning_rate("core", 16) == 0.012
    assert learning_rate("core", 8) == 0.024
    assert learning_rate("diag", 32) * 32**0.5 == pytest.approx(learning_rate("core", 16) * 16, rel=0.02)


def test_what_is_measured_is_not_measured_again(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    plan = [cell(Way.BARE), cell(Way.ORIGINAL), cell(Way.ORIGINAL, seed=1)]
    assert [row["cell"] for row in lab.run(plan[:2], output)] == [
        {"task": "plural", "way": w, "seed": 0} for w in ("bare", "original")
    ]
    assert [row["cell"]["seed"] for row in lab.run(plan, output)] == [1]
    assert lab.run(plan, output) == []
    assert len(read_rows(output)) == 3
    assert waiting(plan, [row["cell"] for row in read_rows(output)]) == []


def test_cells_whose_basis_or_adapter_is_missing_wait(lab: Lab, tmp_path: Path) -> None:
    plan = [
        cell(Way.IMPORT, basis="fleet", k=4, form="core"),
        cell(Way.IMPORT, basis="random", k=8, form="core"),
        cell(Way.ORIGINAL, "upper", seed=1),
        cell(Way.BARE),
    ]
    sweep = lab.sweep(plan, tmp_path / "r.jsonl")
    assert [sweep.is_possible(cell) for cell in plan] == [False, False, False, True]
    assert len(lab.run(plan, tmp_path / "r.jsonl")) == 1
    assert sweep.remaining() == plan[:3]


def test_a_broken_line_is_named_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_row(path, {"cell": {}})
    path.write_text(path.read_text() + '{"cell": {"task"')
    with pytest.raises(LoadTestError, match=r"r\.jsonl, line 2: not a row of this sweep"):
        read_rows(path)


def test_a_basis_that_has_seen_a_held_out_task_is_refused(lab: Lab, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("loadtests.quality.material.tasks_in", lambda _spec: {"plural", "polite"})
    with pytest.raises(LoadTestError, match="made from held-out plural; build it without them"):
        lab.run([cell(Way.IMPORT, basis="random", k=4, form="core")], tmp_path / "r.jsonl")


# ---------------------------------------------------------------- measuring


def test_closed_forms_are_scored_beside_the_original(lab: Lab, tmp_path: Path) -> None:
    on_basis = {"basis": "random", "k": 4, "form": "core"}
    plan = [
        cell(Way.BARE),
        cell(Way.ORIGINAL),
        cell(Way.MEAN),
        cell(Way.NULL),
        cell(Way.SVD, k=16),
        cell(Way.IMPORT, **on_basis),
        cell(Way.IMPORT, residual=8, **on_basis),
        cell(Way.MEAN_IMPORT, **on_basis),
    ]
    bare, original, mean, null, svd, imported, whole, mean_import = lab.run(plan, tmp_path / "r.jsonl")
    assert original["kl"] == pytest.approx(0.0, abs=1e-5) and original["agreement"] == 1.0
    assert all(row["kl"] > 0.1 for row in (bare, mean, null, imported, mean_import))
    assert bare["size_bytes"] == mean["size_bytes"] == 0
    assert imported["size_bytes"] == 2 * 14 * 4 * 4
    assert svd["size_bytes"] <= 2 * 14 * 16 * 16 < original["size_bytes"]
    assert 0 < imported["energy_kept"] < 0.2
    assert whole["kl"] < 1e-4 and whole["agreement"] == 1.0, (
        "adapter and projection are of rank 4 each: a residual of 8 leaves nothing out"
    )
    assert all(row["n_items"] == len(ITEMS) and 0 <= row["exact_match"] <= 1 for row in (bare, original))
    assert imported["in_sample"] is False


@pytest.mark.parametrize("way", [Way.FIT, Way.DISTILL])
def test_training_goes_on_from_a_file_that_was_not_scored_yet(way: Way, lab: Lab, tmp_path: Path, monkeypatch) -> None:
    plan = [cell(way, basis="base-svd", k=4, form="core", steps=3, learning_rate=0.1)]
    steps: list[object] = []
    sweep = lab.sweep(plan, tmp_path / "r.jsonl")
    first = sweep.measure(plan[0], steps.append)
    assert len(steps) == 3 and first["size_bytes"] == 2 * 14 * 16 and first["loss"]["first"] > 0
    again = sweep.measure(plan[0], steps.append)
    assert len(steps) == 3, "trained twice"
    assert (again["kl"], again["answer_loss"]) == (first["kl"], first["answer_loss"])


def test_a_lora_is_trained_on_the_same_items(lab: Lab, tmp_path: Path) -> None:
    plan = [cell(Way.BARE), cell(Way.LORA, steps=20, learning_rate=0.02)]
    bare, lora = lab.run(plan, tmp_path / "r.jsonl")
    assert lora["answer_loss"] < 0.7 * bare["answer_loss"], "training and unseen items are the same here"
    assert lora["size_bytes"] == 2 * lab.run([cell(Way.ORIGINAL)], tmp_path / "o.jsonl")[0]["size_bytes"]


# ---------------------------------------------------------------- ways


def update(rank: int, seed: int) -> LowRankUpdate:
    generator = torch.Generator().manual_seed(seed)
    return LowRankUpdate(b=torch.randn(20, rank, generator=generator), a=torch.randn(rank, 12, generator=generator))


def test_a_null_has_the_strength_and_nothing_else_of_the_adapter() -> None:
    real = {"site": update(4, 0)}
    null = null_of(real, seed=1)["site"]
    assert torch.linalg.svdvals(null.b @ null.a)[:4] == pytest.approx(
        torch.linalg.svdvals(real["site"].b @ real["site"].a)[:4], rel=1e-3
    )
    assert abs(inner_product(null, real["site"])) < 0.5 * null.energy()


def test_the_largest_triplets_are_taken_first_and_fit_the_bytes() -> None:
    strong, weak = scaled(update(2, 0), 10.0), update(2, 1)
    one_triplet = 2 * (20 + 12)
    answerer = ways.own_triplets({"weak": weak, "strong": strong}, 3 * one_triplet + 1)
    assert answerer.size_bytes == 3 * one_triplet
    assert {site: kept.rank for site, kept in answerer.updates.items()} == {"strong": 2, "weak": 1}
    torch.testing.assert_close(
        answerer.updates["strong"].b @ answerer.updates["strong"].a, strong.b @ strong.a, rtol=1e-4, atol=1e-4
    )


def test_the_mean_of_the_fleet_leaves_held_out_tasks_out(lab: Lab) -> None:
    fleet = lab.sweep([], Path("unused")).fleet
    assert [adapter.name for adapter in fleet.in_basis] == ["upper"]
    site, found = next(iter(ways.mean_of_fleet(fleet).items()))
    expected = fleet.adapter("upper", 0).update(site)
    torch.testing.assert_close(found.b @ found.a, expected.b @ expected.a)


# ---------------------------------------------------------------- summary


def row(
    way: str, task: str, exact: float, *, in_sample: bool | None = None, size: int = 1024, **fields: Any
) -> dict[str, Any]:
    found = {"cell": {"task": task, "way": way, "seed": 0, **fields}, "size_bytes": size, "exact_match": exact}
    found |= {"answer_loss": 0.5, "kl": 0.25, "agreement": 0.5, "wall_s": 30.0}
    return found if in_sample is None else found | {"in_sample": in_sample}


ON_FLEET = {"basis": "fleet", "k": 16, "form": "core"}
FIT = {**ON_FLEET, "steps": 180, "learning_rate": 0.012}
ROWS = [
    row("original", "plural", 0.8, size=4096),
    row("original", "upper", 0.4, size=4096),
    row("original", "seen", 1.0, size=4096),
    row("fit", "plural", 0.6, in_sample=False, **FIT),
    row("fit", "plural", 0.7, in_sample=False, **FIT | {"seed": 1}),
    row("import", "plural", 0.1, in_sample=False, size=2048, **ON_FLEET, residual=2),
    row("import", "seen", 0.9, in_sample=True, **ON_FLEET),
]


def test_a_way_is_averaged_over_tasks_and_seeds_and_compared_on_its_own_tasks() -> None:
    found = {one.name: one for one in summaries(ROWS)}
    fit = found["fit fleet core, k=16, 180 steps"]
    assert (fit.n_tasks, fit.n_rows, fit.size_bytes) == (1, 2, 1024)
    assert fit.exact_match == pytest.approx(0.65) and fit.share == pytest.approx(0.65 / 0.8)
    assert found["original LoRA"].n_tasks == 3


def test_a_task_with_more_seeds_weighs_no_more() -> None:
    more = [*ROWS, row("fit", "upper", 0.2, in_sample=False, **FIT)]
    fit = next(one for one in summaries(more) if one.line == "fit fleet core")
    assert fit.exact_match == pytest.approx((0.65 + 0.2) / 2)
    assert fit.share == pytest.approx((0.65 + 0.2) / (0.8 + 0.4))


def test_in_sample_numbers_stand_apart() -> None:
    held_out, in_sample = markdown(ROWS).split("## In-sample: the fleet bases were made from these tasks' adapters")
    assert "| import fleet core + residual, k=16, r=2 | 2 | 1 | 1 | 0.100 | 0.12 |" in held_out
    assert "| original LoRA | 4 | 2 | 2 | 0.600 | 1.00 |" in held_out
    assert "| way | plural | upper |" in held_out and "seen" not in held_out.replace("has seen", "")
    assert "| import fleet core, k=16 | 1 | 1 | 1 | 0.900 | 0.90 |" in in_sample


def test_the_picture_has_a_line_for_each_way_and_no_in_sample_point() -> None:
    svg = picture(ROWS)
    assert "fit fleet core" in svg and "original LoRA" in svg and "import fleet core" not in svg
    with pytest.raises(LoadTestError, match="none of the ways in the picture is measured"):
        picture([one for one in ROWS if one["cell"]["way"] != "fit"])


def test_the_picture_is_of_tasks_that_all_its_ways_are_measured_on() -> None:
    on_random = FIT | {"basis": "random"}
    more = [*ROWS, row("fit", "upper", 0.2, in_sample=False, **FIT), row("fit", "upper", 0.3, **on_random)]
    assert "by size: upper<" in picture(more)
    with pytest.raises(LoadTestError, match="no task is measured in all of fit fleet core, fit random core"):
        picture([*ROWS, row("fit", "upper", 0.3, **on_random)])


def test_the_estimate_is_the_measured_time_per_step() -> None:
    asked = Cell("upper", Way.FIT, steps=90)
    assert estimated_s(asked, ROWS) == pytest.approx(90 * 30 / 180)
    assert estimated_s(Cell("upper", Way.DISTILL, steps=90), ROWS) > 90


# ---------------------------------------------------------------- command


def test_the_command_plans_runs_and_sums_up(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "r.jsonl"
    for one in ROWS[:6]:
        append_row(output, one)
    folders = {"--model": "model", "--fleet": "adapters", "--tasks-data": "data", "--bases": "bases"}
    options = [part for name, folder in folders.items() for part in (name, str(lab.folder / folder))]
    options += ["--output", str(output), "--held-out", "plural", "--stage", "trained"]
    assert main([*options, "--plan"]) == 0
    plan = capsys.readouterr().out
    assert "way=fit basis=fleet k=16 form=core seed=0" not in plan, "it is measured"
    assert "waits  task=plural way=fit basis=fleet k=8 form=core" in plan
    assert main(["table", str(output)]) == 0
    assert capsys.readouterr().out == markdown(read_rows(output))
    assert main(["picture", str(output), str(tmp_path / "q.svg")]) == 0
    assert (tmp_path / "q.svg").read_text() == picture(read_rows(output))
    assert main(["table", str(tmp_path / "none.jsonl")]) == 1
    assert "no results yet" in capsys.readouterr().err
    assert json.loads(output.read_text().splitlines()[0])["format"] == file_format("quality")
