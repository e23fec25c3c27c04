"""The command line: what it makes, and one line on stderr with exit code 2 for whatever the operator got wrong."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic_core import PydanticUndefined

from onebasis import __version__, cli
from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.commands.serve import serve_command
from onebasis.core.config import ServeConfig
from tests.api.tiny_model import TinyModel
from tests.commands.result import Result, misused, refused
from tests.fitting.tiny import N_SITES


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
        (["--max-running", "600", "--max-step-tokens", "512"], "max_step_tokens must be at least max_running"),
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
    refused(onebasis(*build, tmp_path / "file" / "b"), "file is no folder that can be written to; name another one")
