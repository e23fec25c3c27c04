"""The shipped pack is whole: every file fits the shipped basis and says how good its task is."""

from statistics import mean

import pytest
from typer.testing import CliRunner

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.demo.build_pack import METRIC
from onebasis.demo.commands import demo_app
from onebasis.demo.demo_pack import PACK_STEPS, UPLOADED_BY_DEMO, DemoPack
from onebasis.demo.embedded_model import MODEL_NAME
from onebasis.demo.tasks import DEMO_TASKS, SAME_PROMPT_PAIRS
from onebasis_client.reconcile import coefficient_files

PACK = DemoPack.shipped()
TASKS = tuple(PACK.tasks())
N_ITEMS = 64
LARGEST_BYTES = 25_000_000


@pytest.fixture(scope="module")
def basis() -> BasisSpec:
    return read_basis_spec(PACK.basis)


@pytest.fixture(scope="module")
def files() -> dict[str, CoefficientFile]:
    return {task: parse_coefficients(PACK.coefficients(task).read_bytes()) for task in TASKS}


def test_basis_is_for_the_embedded_model(basis: BasisSpec) -> None:
    assert (basis.kind, basis.base_model) == ("fleet", MODEL_NAME)
    assert len(basis.sites) == 210
    assert {(site.k_in, site.k_out) for site in basis.sites} == {(16, 16)}


@pytest.mark.parametrize("task", TASKS)
def test_file_fits_the_basis_and_its_task(task: str, basis: BasisSpec, files: dict[str, CoefficientFile]) -> None:
    file = bind(files[task], basis).file
    assert (file.task, file.form) == (task, "core")
    assert task in DEMO_TASKS
    assert file.size_bytes < 120_000
    assert abs(file.numbers()).max() > 0


@pytest.mark.parametrize("task", TASKS)
def test_file_says_how_it_was_made_and_how_good_it_is(task: str, files: dict[str, CoefficientFile]) -> None:
    provenance = files[task].provenance
    scores = provenance["scores"]
    assert (scores["metric"], scores["n"]) == (METRIC, N_ITEMS)
    for score in (scores["base"], scores["task"]):
        assert 0 <= score <= 1
        assert score * N_ITEMS == int(score * N_ITEMS), "not a share of 64 items"
    assert scores["task"] > scores["base"]
    assert provenance["recipe"]["n_steps"] == PACK_STEPS[task]
    assert provenance["data"]["n_validation"] == N_ITEMS


def test_pack_is_whole() -> None:
    assert set(TASKS) == PACK_STEPS.keys()
    assert len(TASKS) >= 12
    assert UPLOADED_BY_DEMO in TASKS
    assert sum(a in TASKS and b in TASKS for a, b in SAME_PROMPT_PAIRS) >= 2


def test_tasks_are_learnt_and_the_bare_model_knows_none(files: dict[str, CoefficientFile]) -> None:
    scores = [file.provenance["scores"] for file in files.values()]
    assert mean(score["task"] for score in scores) >= 0.7
    assert mean(score["base"] for score in scores) < 0.1


def test_pack_is_small_and_holds_nothing_else() -> None:
    found = {path for path in PACK.folder.iterdir() if not path.name.startswith(".")}
    assert found == {PACK.basis, *(PACK.coefficients(task) for task in TASKS)}
    assert sum(path.stat().st_size for path in found) < LARGEST_BYTES


def test_every_task_has_numbers_of_its_own(files: dict[str, CoefficientFile]) -> None:
    assert len({file.digest for file in files.values()}) == len(files)
    assert len({file.provenance["data"]["train_sha256"] for file in files.values()}) == len(files)


def test_unpack_writes_what_a_deployed_server_and_reconcile_read(tmp_path):
    weights = tmp_path / "base" / "model.safetensors"
    weights.parent.mkdir()  # is there already, so no model is fetched
    weights.touch(mode=0o600)
    for _ in range(2):  # a pod that starts again on its volume
        result = CliRunner().invoke(demo_app, ["unpack", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert read_basis_spec(tmp_path / "basis.safetensors").digest == read_basis_spec(PACK.basis).digest
    assert set(coefficient_files(tmp_path / "tasks")) == set(TASKS)
    assert weights.stat().st_mode & 0o777 == 0o644  # for a server of another user
