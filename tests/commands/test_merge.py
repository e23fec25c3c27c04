"""`onebasis merge`: the file it writes, the mean it prints beside, what it refuses."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.ids import digest_of
from onebasis.core.residual import Residual
from onebasis.fitting.data import read_jsonl, tokenize
from onebasis.fitting.merging.grams import gather_grams
from onebasis.fitting.merging.regmean import regmean
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from tests.api.tiny_model import TinyModel
from tests.commands.result import Result, refused

TEXTS = {"a": "the cat sat on the mat", "b": "all of that other food in the house"}


@dataclass(frozen=True)
class Merging:
    """A folder with the tasks a and b, and data of each; `run` is `onebasis merge` of both."""

    onebasis: Callable[..., Result]
    llama: TinyModel
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.coef.safetensors"

    @property
    def output(self) -> Path:
        return self.path("new/merged")

    def run(self, method: str, *options: object, a: str = "", b: str = "") -> Result:
        files = (f"{self.path('a')}{a}", f"{self.path('b')}{b}")
        needed = ("--basis", self.llama.basis_path, "--method", method, "--output", self.output)
        return self.onebasis("merge", *files, *needed, *options)

    def merged(self) -> CoefficientFile:
        file = parse_coefficients(self.output.read_bytes())
        bind(file, self.llama.basis)
        return file

    def cores(self, name: str) -> np.ndarray:
        return bind(parse_coefficients(self.path(name).read_bytes()), self.llama.basis).flat_cores()


@pytest.fixture
def merging(onebasis, llama: TinyModel, tmp_path: Path) -> Merging:
    for seed, (name, text) in enumerate(TEXTS.items()):
        (tmp_path / f"{name}.coef.safetensors").write_bytes(llama.core_file(seed, task=name))
        lines = [json.dumps({"prompt": f"{text} {i}", "completion": text}) for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return Merging(onebasis, llama, tmp_path)


def test_a_weighted_sum_is_an_ordinary_file_that_says_what_was_summed(merging: Merging) -> None:
    result = merging.run("weighted-sum", a="=0.75", b="=-0.5")
    assert result.exit_code == 0, result.err
    file = merging.merged()
    a, b = merging.cores("a"), merging.cores("b")
    np.testing.assert_allclose(file.numbers(), 0.75 * a - 0.5 * b, rtol=1e-6, atol=1e-6)
    assert (file.form, file.task, file.k, file.sites) == ("core", "a-b", None, None)
    assert file.provenance["merge"] == {
        "method": "weighted-sum",
        "options": {},
        "parts": [
            {"task": name, "digest": digest_of(merging.path(name).read_bytes()), "weight": weight}
            for name, weight in (("a", 0.75), ("b", -0.5))
        ],
    }
    size = merging.output.stat().st_size
    assert result.out.splitlines()[-1] == (
        f"{merging.output}: task a-b, weighted-sum of 2, {size} bytes, {file.digest}"
    )


@pytest.mark.parametrize(("method", "options"), [("ties", ["--density", 0.5]), ("dare", ["--seed", 3]), ("mean", [])])
def test_the_mean_stands_beside_every_method(method: str, options: list, merging: Merging) -> None:
    result = merging.run(method, *options)
    assert result.exit_code == 0, result.err
    numbers, average = merging.merged().numbers(), (merging.cores("a") + merging.cores("b")) / 2
    shown = result.rows(method, "mean", "a", "b")
    rows = {row[0]: [float(cell) for cell in row[1:3]] for row in shown}
    assert len(shown) == len(rows) == (3 if method == "mean" else 4)
    assert rows["mean"] == pytest.approx([np.linalg.norm(average), 0], rel=1e-3)
    assert rows[method] == pytest.approx(
        [np.linalg.norm(numbers), np.linalg.norm(numbers - average)], rel=1e-3, abs=1e-3
    )
    apart = np.linalg.norm(merging.cores("a") - average)
    assert rows["a"] == pytest.approx([np.linalg.norm(merging.cores("a")), apart], rel=1e-3)
    assert ("in another basis" in result.out) is (method != "mean")


def test_regmean_weighs_by_the_data_of_each_part(merging: Merging) -> None:
    data = [option for name in TEXTS for option in ("--data", f"{name}={merging.folder / name}.jsonl")]
    result = merging.run("regmean", "--model", merging.llama.folder, *data, "--ridge", 0.01, "--task", "m")
    assert result.exit_code == 0, result.err
    base = load_base(merging.llama.folder, dtype=torch.bfloat16, device=torch.device("cpu"))
    basis = load_basis(merging.llama.basis_path, dtype=torch.bfloat16, device=torch.device("cpu"))
    grams = []
    for name in TEXTS:
        examples = tokenize(read_jsonl(merging.folder / f"{name}.jsonl"), base.tokenizer, max_tokens=512)
        grams.append(gather_grams(base, basis, merging.cores(name), examples, lambda: None))
    cores = [merging.cores(name) for name in TEXTS]
    file = merging.merged()
    np.testing.assert_array_equal(file.numbers(), regmean(cores, grams, basis.spec.sites, ridge=0.01))
    assert file.task == "m"
    assert file.provenance["merge"]["options"] == {"ridge": 0.01}
    assert not np.array_equal(file.numbers(), (cores[0] + cores[1]) / 2)


def test_scores_are_printed_and_noted(merging: Merging) -> None:
    options = ("--model", merging.llama.folder, "--validation", f"b={merging.folder / 'b.jsonl'}")
    result = merging.run("ties", *options)
    assert result.exit_code == 0, result.err
    (row,) = merging.merged().provenance["scores"]
    assert (row["part"], row["n"], row["metric"]) == ("b", 3, "exact_match")
    shares = [f"{row[who]:.2f}" for who in ("bare", "own", "mean", "merged")]
    assert result.rows("b")[-1] == ["b", "3", *shares]


def test_what_does_not_fit_is_refused_before_anything_is_written(merging: Merging) -> None:
    (merging.folder / "b.coef.safetensors").write_bytes(merging.llama.core_file(1, basis="sha256:" + "0" * 64))
    refused(merging.run("mean"), f"{merging.path('b')}: file is for basis sha256:0+, this server runs")
    merging.path("b").write_bytes(merging.llama.core_file(1, task="b"))
    refused(merging.run("mean", b="=0.5"), "mean takes no weights, 'b' has one")
    refused(merging.run("weighted-sum", a="=1"), "needs FILE=WEIGHT for every part, 'b' has no weight")
    refused(merging.run("mean", "--task", "a/b"), "task name 'a/b'")
    refused(merging.run("regmean"), "regmean needs --model and --data NAME=FILE for every part, 'a' has no data")
    refused(merging.run("mean", "--validation", "a=x"), "need the base model: pass --model")
    model = ("--model", merging.llama.folder)
    refused(merging.run("mean", *model, "--validation", "c=x"), "--validation c=x: needs NAME=FILE, .*of a, b")
    data = f"a={merging.folder / 'a.jsonl'}"
    refused(merging.run("mean", *model, "--data", data), "--data: mean needs none")
    refused(merging.run("regmean", *model, "--data", data), "'b' has no data")
    refused(merging.run("mean", *model, "--validation", data, "--validation", data), "each name once")
    assert not merging.output.exists()


def test_versions_of_one_task_go_by_their_files(merging: Merging, onebasis) -> None:
    merging.path("b").write_bytes(merging.llama.core_file(1, task="a"))
    result = merging.run("weighted-sum", a="=0.75", b="=-0.5")
    assert result.exit_code == 0, result.err
    parts = merging.merged().provenance["merge"]["parts"]
    assert [(part["task"], part["weight"]) for part in parts] == [("a", 0.75), ("b", -0.5)]
    again = ("--basis", merging.llama.basis_path, "--method", "mean", "--output", merging.folder / "again")
    refused(onebasis("merge", merging.path("a"), merging.path("a"), *again), "two parts are called 'a'")


def test_no_part_is_written_over(merging: Merging, onebasis) -> None:
    files = (merging.path("a"), merging.path("b"), "--basis", merging.llama.basis_path, "--method", "mean")
    before = merging.path("b").read_bytes()
    for path in (merging.path("b"), merging.llama.basis_path):
        refused(onebasis("merge", *files, "--output", path), f"output {path}: this command reads that file")
    assert merging.path("b").read_bytes() == before


def test_a_residual_is_not_lost_on_the_way(merging: Merging) -> None:
    site = merging.llama.basis.sites[0]
    residual = {site.name: Residual(np.ones((1, site.d_in), np.float16), np.ones((site.d_out, 1), np.float16))}
    merging.path("b").write_bytes(merging.llama.core_file(1, task="b", residual=residual))
    refused(merging.run("mean"), f"{merging.path('b')}: it has a residual beside its cores, which would be lost")


def test_one_file_is_no_merge_and_a_name_may_have_an_equals_sign(merging: Merging, onebasis) -> None:
    options = ("--basis", merging.llama.basis_path, "--method", "mean", "--output", merging.output)
    refused(onebasis("merge", merging.path("a"), *options), "1 file: a merge needs at least two")
    refused(onebasis("merge", *[merging.path("a")] * 201, *options), "201 files: at most 200 can be merged")
    strange = merging.path("x=y")
    strange.write_bytes(merging.path("b").read_bytes())
    assert onebasis("merge", merging.path("a"), strange, *options).exit_code == 0
    refused(onebasis("merge", merging.path("a"), merging.path("nowhere"), *options), "No such file")
