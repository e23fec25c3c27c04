"""The command line: what it makes, and one line on stderr with exit code 2 for whatever the operator got wrong."""

import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from pydantic_core import PydanticUndefined

from onebasis import __version__, cli
from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.commands.serve import serve_command
from onebasis.core.config import ServeConfig
from tests.api.tiny_model import TinyModel, save_tiny_model
from tests.fitting.tiny import N_SITES, save_family


@dataclass(frozen=True)
class Result:
    exit_code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def onebasis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs the command's entry point in this process, as a shell would."""

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["onebasis", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run


def refused(result: Result, complaint: str) -> None:
    """Exit code 2, nothing but one line on stderr (a progress bar that was taken away may leave an empty one)."""
    assert result.exit_code == 2, result
    lines = [line for line in result.err.splitlines() if line]
    assert len(lines) == 1, result.err
    assert re.search(complaint, lines[0]), lines[0]
    assert lines[0].startswith("onebasis: ")
    assert "\x1b" not in lines[0]


def misused(result: Result, option: str) -> None:
    """Exit code 2 and the option's name, in the usage message of the command-line library."""
    assert result.exit_code == 2, result
    assert "Traceback" not in result.err
    assert f"Invalid value for '{option}'" in result.err


def test_version(onebasis) -> None:
    assert onebasis("version") == Result(0, f"{__version__}\n", "")


# ---------------------------------------------------------------- serve


def serve_parameters() -> dict[str, Any]:
    command = typer.main.get_command(cli.app).commands["serve"]
    return {parameter.name: parameter for parameter in command.params if parameter.name != "help"}


def test_serve_has_the_settings_of_the_config_and_no_other() -> None:
    assert serve_parameters().keys() == ServeConfig.model_fields.keys()


@pytest.mark.parametrize("name", ServeConfig.model_fields)
def test_serve_option_is_spelt_and_preset_as_the_setting_is(name: str) -> None:
    option = serve_parameters()[name]
    assert f"--{name.replace('_', '-')}" in option.opts
    assert option.envvar == f"ONEBASIS_{name.upper()}"
    default = ServeConfig.model_fields[name].default
    assert option.required == (default is PydanticUndefined)
    if not option.required:
        assert inspect.signature(serve_command()).parameters[name].default == default


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--host", "0.0.0.0"], "options: .*pass --allow-unauthenticated"),
        (["--dtype", "int4"], "dtype: .*'bfloat16', 'float16' or 'float32'"),
        (["--max-running", "600"], "max_step_tokens must be at least max_running"),
        (["--basis", "nowhere"], "basis nowhere: No such file"),
        (["--max-model-len", "100000"], "max_model_len 100000: the model allows 2048"),
    ],
)
def test_serve_refuses_settings_that_do_not_fit(options, complaint, onebasis, llama: TinyModel, tmp_path) -> None:
    store = f"sqlite:///{tmp_path / 'tasks.db'}"
    refused(onebasis("serve", "--model", llama.folder, "--store", store, "--log-level", "error", *options), complaint)


def test_serve_refuses_a_folder_without_a_model(onebasis, tmp_path: Path) -> None:
    refused(onebasis("serve", "--model", tmp_path), f"model {tmp_path}: needs a folder with config.json")


# ---------------------------------------------------------------- basis build


@pytest.mark.parametrize("kind", ["base-svd", "random"])
def test_basis_build(kind: str, onebasis, llama: TinyModel, tmp_path: Path) -> None:
    path = tmp_path / "new" / "b.basis.safetensors"
    result = onebasis("basis", "build", "--model", llama.folder, "--output", path, "--kind", kind, "--k", 3)
    assert result.exit_code == 0, result.err
    spec = read_basis_spec(path)
    assert (spec.kind, spec.base_model, len(spec.sites), spec.sites[0].k_in) == (kind, llama.folder.name, N_SITES, 3)
    assert result.out == f"{path}: {kind}, 14 sites, k=3, {spec.size_bytes / 2**20:.1f} MiB, {spec.digest}\n"


def test_basis_build_notes_the_name_and_the_seed(onebasis, llama: TinyModel, tmp_path: Path) -> None:
    options = ["--model", llama.folder, "--kind", "random", "--k", 2, "--base-name", "org/tiny"]
    for seed in (1, 2):
        assert onebasis("basis", "build", *options, "--seed", seed, "--output", tmp_path / str(seed)).exit_code == 0
    first, other = read_basis_spec(tmp_path / "1"), read_basis_spec(tmp_path / "2")
    assert (first.base_model, first.report["seed"], other.report["seed"]) == ("org/tiny", 1, 2)
    assert first.digest != other.digest


def test_basis_build_refuses_what_does_not_fit(onebasis, llama: TinyModel, tmp_path: Path) -> None:
    build = ("basis", "build", "--output", tmp_path / "b")
    refused(onebasis(*build, "--model", llama.folder, "--k", 999), "k=999: this model allows 1 to 32")
    refused(onebasis(*build, "--model", tmp_path / "nowhere"), "model .*nowhere: needs a folder with config.json")
    misused(onebasis(*build, "--model", llama.folder, "--kind", "pca"), "--kind")
    misused(onebasis(*build, "--model", llama.folder, "--threads", 0), "--threads")
    assert not (tmp_path / "b").exists()


def test_basis_build_says_why_it_can_not_write(onebasis, llama: TinyModel, tmp_path: Path) -> None:
    build = ("basis", "build", "--model", llama.folder, "--k", 2, "--output")
    misused(onebasis(*build, tmp_path), "--output")
    (tmp_path / "file").touch()
    refused(onebasis(*build, tmp_path / "file" / "b"), r"\[Errno \d+\] .*file'")


# ---------------------------------------------------------------- fit


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
def test_fit_holds_out_a_tenth_by_default(form: str, n_numbers: int, fitting: Fitting) -> None:
    result = fitting.run(form=form)
    assert result.exit_code == 0, result.err
    file = fitting.file()
    assert (file.form, file.task, file.shape) == (form, "t", (n_numbers,))
    data = file.provenance["data"]
    assert (data["n_train"], data["n_validation"]) == (11, 1)
    first, second = result.out.splitlines()
    assert re.fullmatch(rf"{fitting.output}: {file.size_bytes} bytes, loss \d\.\d+ -> \d\.\d+ in \d+ s", first), first
    assert re.fullmatch(r"exact match on 1 unseen items: base \d\.\d\d, task \d\.\d\d", second), second


def test_fit_scores_on_a_validation_file(fitting: Fitting) -> None:
    result = fitting.run(validation=fitting.folder / "chats.jsonl")
    assert result.exit_code == 0, result.err
    provenance = fitting.file().provenance
    assert (provenance["data"]["n_train"], provenance["scores"]["n"]) == (12, 8)
    assert "exact match on 8 unseen items" in result.out


def test_fit_on_too_few_examples_to_hold_any_out_has_no_score(fitting: Fitting) -> None:
    result = fitting.run(data=fitting.folder / "chats.jsonl")
    assert result.exit_code == 0, result.err
    provenance = fitting.file().provenance
    assert (provenance["data"]["n_train"], provenance["scores"]["task"]) == (8, None)
    assert len(result.out.splitlines()) == 1


def test_fit_notes_its_options(fitting: Fitting) -> None:
    options = {"batch-size": 5, "learning-rate": 0.003, "seed": 7, "steps": 2, "threads": torch.get_num_threads()}
    assert fitting.run(**options).exit_code == 0
    recipe = fitting.file().provenance["recipe"]
    assert recipe.items() >= {"batch_size": 5, "learning_rate": 0.003, "seed": 7, "n_steps": 2}.items()


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"form": "vector"}, "form 'vector': needs one of core, diag"),
        ({"learning-rate": 0}, "learning rate 0.0: needs a finite number above 0"),
        ({"task": "a/b"}, "task name 'a/b': needs 1 to 128 of letters"),
        ({"model": "nowhere"}, "model nowhere: needs a folder with config.json"),
        ({"basis": "nowhere"}, "basis nowhere: No such file or directory; give a"),
        ({"data": "nowhere"}, "data nowhere: .*; give a UTF-8 file of JSON lines"),
        ({"validation": "nowhere"}, "data nowhere: .*; give a UTF-8 file of JSON lines"),
    ],
)
def test_fit_refuses_before_it_trains(changed: dict[str, object], complaint: str, fitting: Fitting) -> None:
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
    ],
)
def test_fit_refuses_numbers_out_of_range(name: str, value: object, fitting: Fitting) -> None:
    misused(fitting.run(**{name: value}), f"--{name}")


def test_fit_names_the_line_that_is_wrong(fitting: Fitting) -> None:
    path = fitting.folder / "data.jsonl"
    path.write_text(path.read_text() + '\n{"prompt": "a"}')
    refused(fitting.run(), r"data\.jsonl, line 13: needs \{prompt, completion\}")


def test_fit_names_the_example_that_is_too_long(fitting: Fitting) -> None:
    """By its place in the file, not by its place after the shuffle."""
    path = fitting.folder / "data.jsonl"
    path.write_text(path.read_text() + "\n" + json.dumps({"prompt": "the cat " * 600, "completion": "a"}))
    refused(fitting.run(), r"example 13 has \d+ tokens, --max-example-tokens is 512; shorten it or raise the limit")


def test_fit_refuses_a_basis_for_another_model(fitting: Fitting) -> None:
    other = save_family(fitting.llama, fitting.folder / "other")
    refused(fitting.run(model=other), "the basis is for base weights sha256:.* build a basis for this one")


def test_fit_refuses_a_folder_as_output(fitting: Fitting) -> None:
    misused(fitting.run(output=fitting.folder), "--output")
