"""`onebasis inspect`: what it shows of each kind of file, and that it refuses what a server would, in its words."""

import json
import math
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from onebasis.coefficients.backup import back_up
from onebasis.coefficients.store import TaskStore
from onebasis.coefficients.tables import FILES
from onebasis.core.ids import digest_of
from onebasis.core.residual import Residual
from onebasis.storage.database import Database
from tests.api.tiny_model import TinyModel
from tests.coefficients.builders import edited, started
from tests.commands.result import refused


@pytest.fixture
def task(llama: TinyModel, tmp_path: Path) -> Path:
    path = tmp_path / "t.coef.safetensors"
    path.write_bytes(llama.core_file(0, task="t", provenance={"tool": "x", "scores": {"n": 3}}))
    return path


def inspected(onebasis, *arguments: object, exit_code: int = 0) -> list[dict]:
    result = onebasis("inspect", "--json", *arguments)
    assert result.exit_code == exit_code, result
    return json.loads(result.out)


def test_coefficients_against_their_basis(onebasis, llama: TinyModel, task: Path) -> None:
    (found,) = inspected(onebasis, task, "--basis", llama.basis_path)
    numbers = np.random.default_rng(0).normal(0.0, 1.0, llama.basis.n_core_numbers).astype(np.float16)
    facts = found.pop("facts")
    digest = digest_of(task.read_bytes())
    size = task.stat().st_size
    assert found == {"path": str(task), "kind": "coefficients", "digest": digest, "size_bytes": size, "problems": []}
    norms = {}
    start = 0
    for site in llama.basis.sites:
        norms[site.name] = float(np.linalg.norm(numbers[start : start + 16].astype(np.float64)))
        start += 16
    largest, smallest = max(norms, key=norms.get), min(norms, key=norms.get)
    assert facts.pop("largest_site") == {"site": largest, "norm": pytest.approx(norms[largest])}
    assert facts.pop("smallest_site") == {"site": smallest, "norm": pytest.approx(norms[smallest])}
    assert facts.pop("norm") == pytest.approx(math.hypot(*norms.values()))
    assert facts.pop("largest") == float(np.abs(numbers).max())
    assert facts == {
        "form": "core",
        "dtype": "float16",
        "n_numbers": numbers.size,
        "k": None,
        "sites": None,
        "task": "t",
        "basis": llama.basis.digest,
        "base_fingerprint": llama.basis.base_fingerprint,
        "residual_sites": 0,
        "residual_rank": 0,
        "residual_bytes": 0,
        "provenance": {"tool": "x", "scores": {"n": 3}},
    }


def test_a_residual(onebasis, llama: TinyModel, tmp_path: Path) -> None:
    site = llama.basis.sites[0]
    path = tmp_path / "r.coef.safetensors"
    residual = {site.name: Residual(np.ones((2, site.d_in), np.float16), np.ones((site.d_out, 2), np.float16))}
    path.write_bytes(llama.core_file(0, residual=residual))
    facts = inspected(onebasis, path, "--basis", llama.basis_path)[0]["facts"]
    assert (facts["residual_sites"], facts["residual_rank"]) == (1, 2)
    assert facts["residual_bytes"] == 2 * 2 * (site.d_in + site.d_out)


def test_the_table_says_it_too(onebasis, llama: TinyModel, task: Path) -> None:
    result = onebasis("inspect", task, "--basis", llama.basis_path)
    assert (result.exit_code, result.err) == (0, "")
    shown = dict(row[:2] for row in result.rows("digest", "task", "basis", "provenance: scores", "verdict"))
    assert shown == {
        "digest": digest_of(task.read_bytes()),
        "task": "t",
        "basis": llama.basis.digest,
        "provenance: scores": '{"n": 3}',
        "verdict": "fits the basis",
    }
    assert "was not asked (--basis)" in onebasis("inspect", task).out


def test_a_basis(onebasis, llama: TinyModel) -> None:
    (found,) = inspected(onebasis, llama.basis_path)
    facts = found["facts"]
    assert (found["kind"], found["digest"], found["problems"]) == ("basis", llama.basis.digest, [])
    assert facts["report"] == llama.basis.report
    assert facts["orthonormality_deviation"] == pytest.approx(
        llama.basis.report["orthonormality_deviation_after_rounding"], abs=1e-5
    )
    assert facts["least_orthonormal"].rpartition(".")[0] in {site.name for site in llama.basis.sites}
    assert (facts["n_sites"], facts["k_in"], facts["k_out"], facts["dtypes"]) == (14, [4, 4], [4, 4], ["BF16"])


def refusals(llama: TinyModel) -> dict[str, tuple[bytes, str]]:
    """A name, the bytes, and what the server says of them."""
    good = llama.core_file(0)
    nan = np.full(llama.basis.n_core_numbers, np.nan, dtype=np.float16).tobytes()
    return {
        "cut": (good[:-1], "file needs .* bytes, found"),
        "no-container": (b"x" * 100, "it announces a header of"),
        "pickle": (b"\x80\x04" + b"x" * 100, "found a pickle or zip archive"),
        "other-format": (edited(good, metadata={"format": "peft"}), "metadata 'format': needs 'onebasis.coefficients'"),
        "nan": (good[: -len(nan)] + nan, "numbers are NaN or infinite"),
        "other-basis": (llama.core_file(0, basis="sha256:" + "0" * 64), "this server runs " + llama.basis.digest),
        "other-base": (llama.core_file(0, base_fingerprint="sha256:" + "0" * 64), "file is for base weights sha256:0"),
        "prefix": (llama.core_file(0, k=9), "k=9: the loaded basis allows 1 to 4"),
        "sites": (llama.core_file(0, sites=("layers.9",)), "sites layers.9 are not in the loaded basis"),
        "length": (llama.core_file(0, k=3), "form core needs coefficients of shape"),
        "basis-cut": (llama.basis_path.read_bytes()[:-1], "file needs .* bytes, found"),
    }


REFUSED = ["cut", "no-container", "pickle", "other-format", "nan", "basis-cut"]
REFUSED_BY_A_BASIS = ["other-basis", "other-base", "prefix", "sites", "length"]


@pytest.mark.parametrize("name", REFUSED + REFUSED_BY_A_BASIS)
def test_what_a_server_refuses_has_exit_code_one_and_its_reason(name: str, onebasis, llama, tmp_path: Path) -> None:
    data, reason = refusals(llama)[name]
    path = tmp_path / name
    path.write_bytes(data)
    result = onebasis("inspect", path, "--basis", llama.basis_path)
    assert result.exit_code == 1
    assert len(result.err.splitlines()) == 1
    assert re.search(reason, result.err), result.err
    (found,) = inspected(onebasis, path, "--basis", llama.basis_path, exit_code=1)
    assert len(found["problems"]) == 1
    assert onebasis("inspect", path).exit_code == (1 if name in REFUSED else 0), "a basis decides this"


def test_one_bad_file_does_not_hide_the_others(onebasis, llama: TinyModel, task: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"")
    found = inspected(onebasis, bad, task, llama.basis_path, "--basis", llama.basis_path, exit_code=1)
    assert [bool(one["problems"]) for one in found] == [True, False, False]
    assert [one["kind"] for one in found] == ["unknown", "coefficients", "basis"]


def test_digests(onebasis, llama: TinyModel, task: Path) -> None:
    right, wrong = digest_of(task.read_bytes()), "sha256:" + "0" * 64
    assert onebasis("inspect", task, "--digest", right).exit_code == 0
    result = onebasis("inspect", task, "--digest", wrong)
    assert result.exit_code == 1
    assert f"its digest is {right}, expected was {wrong}" in result.err
    refused(onebasis("inspect", task, "--digest", "abc"), "needs 'sha256:' and 64 lower-case hex digits")
    assert "Invalid value for '--digest'" in onebasis("inspect", task, task, "--digest", right).err
    assert onebasis("inspect", task, "--basis", "nowhere").exit_code == 2


def test_another_basis_is_not_the_basis(onebasis, llama: TinyModel, tmp_path: Path) -> None:
    other = tmp_path / "other.basis.safetensors"
    other.write_bytes(edited(llama.basis_path.read_bytes(), metadata={"report": "{}"}))
    assert onebasis("inspect", other).exit_code == 0
    result = onebasis("inspect", other, "--basis", llama.basis_path)
    assert result.exit_code == 1
    assert f"it is another basis than --basis, which is {llama.basis.digest}" in result.err


@pytest.fixture
def backup(llama: TinyModel, tmp_path: Path) -> Path:
    """Tasks a (two versions) and b, and gone, which was deleted."""
    path = tmp_path / "backup.db"
    with closing(Database(f"sqlite:///{tmp_path / 'tasks.db'}")) as database:
        registry = started(TaskStore(database), llama.basis)
        registry.register("a", llama.core_file(0))
        registry.register("a", llama.core_file(1))
        registry.register("gone", llama.core_file(2))
        registry.delete("gone")
        registry.register("b", llama.core_file(3))
        back_up(database, path)
    return path


def test_a_backup(onebasis, llama: TinyModel, backup: Path) -> None:
    before = backup.read_bytes()
    (found,) = inspected(onebasis, backup, "--basis", llama.basis_path)
    assert (found["kind"], found["digest"], found["problems"]) == ("backup", digest_of(before), [])
    assert found["facts"] == {
        "tasks": {"a": digest_of(llama.core_file(1)), "b": digest_of(llama.core_file(3))},
        "n_versions": 4,
        "n_files": 3,
        "bases": {llama.basis.digest: 3},
    }
    assert backup.read_bytes() == before


def test_what_is_wrong_in_a_backup(onebasis, llama: TinyModel, backup: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.basis.safetensors"
    other.write_bytes(edited(llama.basis_path.read_bytes(), metadata={"report": "{}"}))
    (found,) = inspected(onebasis, backup, "--basis", other, exit_code=1)
    assert len(found["problems"]) == 3
    assert all("file is for basis" in problem for problem in found["problems"])
    digest = digest_of(llama.core_file(3))
    with closing(Database(f"sqlite:///{backup}")) as database, database.writing() as connection:
        connection.execute(update(FILES).where(FILES.c.digest == digest).values(body=b"x"))
    (found,) = inspected(onebasis, backup, exit_code=1)
    assert found["problems"] == [f"the bytes of {digest} are damaged"]


def test_a_database_that_is_no_backup(onebasis, tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(b"SQLite format 3\0" + b"x" * 100)
    (found,) = inspected(onebasis, path, exit_code=1)
    assert "backup" in found["problems"][0]
    assert found["kind"] == "backup"
