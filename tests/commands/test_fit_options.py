"""Options of `onebasis fit`: honoured, noted in the file, or refused before anything is trained."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.validate import bind
from tests.api.tiny_model import TinyModel
from tests.commands.result import Result, misused, refused
from tests.fitting.tiny import save_family


@dataclass(frozen=True)
class Fitting:
    """A folder with twelve examples; `run` is `onebasis fit` with few steps, and options on top."""

    onebasis: Callable[..., Result]
    llama: TinyModel
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "new" / "t.coef.safetensors"

    def run(self, *options: object, **changed: object) -> Result:
        needed = {
            "model": self.llama.folder,
            "basis": self.llama.basis_path,
            "data": self.folder / "data.jsonl",
            "output": self.output,
            "task": "t",
            "steps": 3,
        }
        flags = [part for name, value in (needed | changed).items() for part in (f"--{name}", value)]
        return self.onebasis("fit", *flags, *options)

    def file(self) -> CoefficientFile:
        file = parse_coefficients(self.output.read_bytes())
        bind(file, self.llama.basis)
        return file


@pytest.fixture
def fitting(onebasis, llama: TinyModel, tmp_path: Path) -> Fitting:
    lines = [{"prompt": f"the cat {i}", "completion": " sat"} for i in range(12)]
    chats = [[{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ate"}]] * 8
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    return Fitting(onebasis, llama, tmp_path)


@pytest.mark.parametrize(("form", "n_numbers"), [("core", 14 * 4 * 4), ("diag", 14 * 4)])
def test_holds_out_a_tenth_by_default(form: str, n_numbers: int, fitting: Fitting) -> None:
    result = fitting.run(form=form)
    assert result.exit_code == 0, result.err
    file = fitting.file()
    assert (file.form, file.task, file.shape) == (form, "t", (n_numbers,))
    data = file.provenance["data"]
    assert (data["n_train"], data["n_validation"]) == (11, 1)
    assert str(file.size_bytes) in result.rows("t")[0]


def test_scores_on_a_validation_file(fitting: Fitting) -> None:
    result = fitting.run(validation=fitting.folder / "chats.jsonl")
    assert result.exit_code == 0, result.err
    provenance = fitting.file().provenance
    assert (provenance["data"]["n_train"], provenance["scores"]["n"]) == (12, 8)


def test_on_too_few_examples_to_hold_any_out_has_no_score(fitting: Fitting) -> None:
    result = fitting.run(data=fitting.folder / "chats.jsonl")
    assert result.exit_code == 0, result.err
    provenance = fitting.file().provenance
    assert (provenance["data"]["n_train"], provenance["scores"]["task"]) == (8, None)


def test_notes_its_options(fitting: Fitting) -> None:
    options = {"batch-size": 5, "learning-rate": 0.003, "seed": 7, "steps": 2, "threads": torch.get_num_threads()}
    assert fitting.run(**options).exit_code == 0
    recipe = fitting.file().provenance["recipe"]
    assert recipe.items() >= {"batch_size": 5, "learning_rate": 0.003, "seed": 7, "n_steps": 2}.items()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"form": "vector"}, "form 'vector': basis sha256:.* has no mixing cores"),
        ({"form": "matrix"}, "form 'matrix': needs one of core, diag, vector"),
        ({"learning-rate": 0}, "learning rate 0.0: needs a finite number above 0"),
        ({"task": "a/b"}, "task name 'a/b': needs 1 to 128 of letters"),
        ({"model": "nowhere"}, "model nowhere: needs a folder with config.json"),
        ({"basis": "nowhere"}, "basis nowhere: No such file or directory; give a"),
        ({"data": "nowhere"}, "data nowhere: .*; give a UTF-8 file of JSON lines"),
        ({"validation": "nowhere"}, "data nowhere: .*; give a UTF-8 file of JSON lines"),
    ],
)
def test_refuses_before_it_trains(changed: dict[str, object], complaint: str, fitting: Fitting) -> None:
    refused(fitting.run(**changed), complaint)
    assert not fitting.output.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch-size", 0),
        ("learning-rate", -1),
        ("learning-rate", "nan"),
        ("max-example-tokens", 1),
        ("threads", 0),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_refuses_numbers_out_of_range(name: str, value: object, fitting: Fitting) -> None:
    misused(fitting.run(**{name: value}), f"--{name}")


def test_names_the_line_that_is_wrong(fitting: Fitting) -> None:
    path = fitting.folder / "data.jsonl"
    path.write_text(path.read_text() + '\n{"prompt": "a"}')
    refused(fitting.run(), r"data\.jsonl, line 13: needs \{prompt, completion\}")


def test_names_the_example_that_is_too_long(fitting: Fitting) -> None:
    """By its place in the file, not by its place after the shuffle."""
    path = fitting.folder / "data.jsonl"
    path.write_text(path.read_text() + "\n" + json.dumps({"prompt": "the cat " * 600, "completion": "a"}))
    refused(fitting.run(), r"example 13 has \d+ tokens, --max-example-tokens is 512; shorten it or raise the limit")


def test_refuses_a_basis_for_another_model(fitting: Fitting) -> None:
    other = save_family(fitting.llama, fitting.folder / "other")
    refused(fitting.run(model=other), "the basis is for base weights sha256:.* build a basis for this one")
