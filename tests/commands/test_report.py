"""`onebasis report` on adapters that PEFT wrote, with data, files and refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from onebasis.coefficients.format import parse_coefficients
from tests.api.tiny_model import MAX_POSITIONS, TinyModel
from tests.commands.result import Result, refused
from tests.fitting.peft.adapters import plain_adapter


@dataclass(frozen=True)
class Reporting:
    onebasis: Callable[..., Result]
    llama: TinyModel
    folder: Path
    adapters: tuple[Path, ...]

    def run(self, *options: object) -> Result:
        needed = ("--model", self.llama.folder, "--basis", self.llama.basis_path, "--output", self.folder / "new/out")
        return self.onebasis("report", *needed, "--threads", 1, *options)

    def report(self) -> dict:
        return json.loads((self.folder / "new/out/report.json").read_text())

    def data(self, *names: str) -> Path:
        folder = self.folder / "data"
        folder.mkdir(exist_ok=True)
        lines = [json.dumps({"prompt": f"the cat {i}", "completion": "the mat"}) for i in range(4)]
        for name in names:
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
        return folder


@pytest.fixture(scope="module")
def adapters(llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("fleet")
    return tuple(plain_adapter(llama.folder, folder / name, seed) for seed, name in enumerate(("red", "blue")))


@pytest.fixture
def reporting(onebasis, llama: TinyModel, tmp_path: Path, adapters: tuple[Path, ...]) -> Reporting:
    return Reporting(onebasis, llama, tmp_path, adapters)


def test_a_whole_report(reporting: Reporting) -> None:
    task = reporting.folder / "mine.coef.safetensors"
    task.write_bytes(reporting.llama.core_file(0, task="blue"))
    data = reporting.data("blue", "nobody")
    result = reporting.run(*reporting.adapters, "--data", data, "--tasks", task, "--items", 3)
    assert result.exit_code == 0, result.err
    assert "no adapter and no task is called 'nobody'; left out" in result.err
    report = reporting.report()
    assert report["basis"]["digest"] == reporting.llama.basis.digest
    assert [adapter["name"] for adapter in report["weights"]["adapters"]] == ["red", "blue"]
    assert len(report["weights"]["sites"]) == 14
    (blue,) = report["tasks"]
    assert (blue["task"], blue["n_items"]) == ("blue", 3)
    ways = {way["way"]: way for way in blue["ways"]}
    assert len(ways) == 12
    assert ways["coefficients mine"]["size_bytes"] == parse_coefficients(task.read_bytes()).values.nbytes
    assert ways["original adapter"]["kl"] == pytest.approx(0, abs=1e-6)
    assert ways["null of the same strengths"]["kl"] > 0.01
    last = report["weights"]["null"][-1]
    assert f"energy held at k=4: this basis, held out {last['held_out']:.3f}; made anew" in result.out
    assert f"made anew without the adapter {last['left_out']:.3f}; random adapters" in result.out
    assert "blue: bare model 0.00" in result.out
    page = (reporting.folder / "new/out/report.html").read_text()
    assert "blue, 3 items" in page


def test_weights_alone_and_tasks_alone(reporting: Reporting) -> None:
    assert reporting.run(reporting.adapters[0], "--no-leave-one-out").exit_code == 0
    report = reporting.report()
    assert report["tasks"] == []
    assert report["weights"]["adapters"][0]["left_out"] is None
    task = reporting.folder / "mine.coef.safetensors"
    task.write_bytes(reporting.llama.core_file(0, task="blue"))
    assert reporting.run("--data", reporting.data("blue"), "--tasks", task).exit_code == 0
    report = reporting.report()
    assert report["weights"] is None
    assert [way["way"] for way in report["tasks"][0]["ways"]] == ["bare model", "coefficients mine"]


def test_files_of_one_name_are_scored_each(reporting: Reporting) -> None:
    names = ("blue.v1.0.coef.safetensors", "blue.v1.1.coef.safetensors", "old/blue.v1.1.coef.safetensors")
    paths = [reporting.folder / name for name in names]
    paths[2].parent.mkdir()
    for seed, path in enumerate(paths):
        path.write_bytes(reporting.llama.core_file(seed, task="blue"))
    options = [option for path in paths for option in ("--tasks", path)]
    result = reporting.run("--data", reporting.data("blue"), *options)
    assert result.exit_code == 0, result.err
    shown = [way["way"] for way in reporting.report()["tasks"][0]["ways"]]
    assert shown == ["bare model", *(f"coefficients {name}" for name in ("blue.v1.0", paths[1], paths[2]))]


def test_what_can_not_be_reported_is_refused(reporting: Reporting) -> None:
    task = reporting.folder / "mine.coef.safetensors"
    task.write_bytes(reporting.llama.core_file(0, task="blue"))
    refused(reporting.run(), "nothing to measure; give adapters, or --tasks with --data")
    refused(reporting.run("--tasks", task), "--tasks are scored on data; give --data")
    refused(reporting.run("--tasks", task, "--data", reporting.data("green")), "its task is 'blue', and .* no such")
    red = reporting.adapters[0]
    refused(reporting.run(red, red), "two adapters are called 'red'")
    copy = reporting.folder / "copy"
    shutil.copytree(red, copy)
    refused(reporting.run(red, copy), "'red' and 'copy' are the same adapter; give it once")
    long = reporting.data("blue") / "blue.jsonl"
    (long.parent / "green.jsonl").unlink()
    long.write_text(json.dumps({"prompt": "the cat " * 1100, "completion": "the mat"}))
    complaint = f"blue: items and answers of up to \\d+ tokens, the attention window is {MAX_POSITIONS}; "
    refused(reporting.run("--tasks", task, "--data", long.parent, "--max-example-tokens", 3000), complaint)
    task.write_bytes(reporting.llama.core_file(0, task="green", basis="sha256:" + "0" * 64))
    refused(reporting.run("--tasks", task, "--data", reporting.data("green")), f"{task}: file is for basis sha256:000")
    task.unlink()
    empty = reporting.folder / "empty"
    empty.mkdir()
    refused(reporting.run(red, "--data", empty), "no file is named after an adapter or a task; name them NAME.jsonl")
    refused(reporting.run(empty), "no adapter_config.json|adapter_model")
    assert not (reporting.folder / "new").exists()


def test_a_folder_that_can_not_be_written_to_is_refused_before_anything_is_measured(reporting: Reporting) -> None:
    (reporting.folder / "new").write_bytes(b"")
    refused(reporting.run("--data", reporting.data("nobody")), "new is no folder that can be written to")
