"""`onebasis import` and `onebasis export`, as a shell runs them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onebasis.coefficients.format import parse_coefficients
from tests.api.tiny_model import TinyModel
from tests.commands.result import Result, refused
from tests.fitting.peft.adapters import plain_adapter

Command = Callable[..., Result]


@pytest.fixture
def adapter(llama: TinyModel, tmp_path: Path) -> Path:
    return plain_adapter(llama.folder, tmp_path / "my-task")


def given(llama: TinyModel, output: Path) -> list[object]:
    return ["--model", llama.folder, "--basis", llama.basis_path, "--output", output]


def test_an_import_says_what_it_kept_and_what_the_residual_costs(
    onebasis: Command, llama: TinyModel, adapter: Path, tmp_path: Path
):
    output = tmp_path / "new" / "t.coef.safetensors"
    result = onebasis("import", adapter, *given(llama, output), "--residual", 3)
    assert result.exit_code == 0, result.err
    file = parse_coefficients(output.read_bytes())
    assert file.task == "my-task"
    kept = file.provenance["energy_kept"]
    assert f"energy kept by the cores: {kept['cores']:.3f}; a random basis of this size would keep " in result.out
    size = file.provenance["residual"]["size_bytes"]
    assert f"residual of rank 3: {size} bytes on top, energy kept with it: {kept['with_residual']:.3f}" in result.out
    assert f"{len(output.read_bytes())} bytes, {14 * 16 * 2} of them coefficients of 14 sites" in result.out
    assert f"adapter my-task: rank 4, scale 2 (folded in), {file.provenance['source']['digest']}" in result.out
    assert "worst sites: model.layers." in result.out


def test_an_import_that_loses_the_adapter_is_refused_unless_it_is_wanted(
    onebasis: Command, llama: TinyModel, adapter: Path, tmp_path: Path
):
    output = tmp_path / "t.coef.safetensors"
    refused(onebasis("import", adapter, *given(llama, output)), "of its energy would be kept, --min-energy is 0.5")
    assert not output.exists()
    assert onebasis("import", adapter, *given(llama, output), "--min-energy", 0, "--task", "other").exit_code == 0
    assert parse_coefficients(output.read_bytes()).task == "other"


def test_a_calibration_text_gives_other_cores_and_both_errors(
    onebasis: Command, llama: TinyModel, adapter: Path, tmp_path: Path
):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"prompt": f"the cat {n}", "completion": "sat"}) + "\n" for n in range(4)))
    plain, weighted = tmp_path / "p.coef.safetensors", tmp_path / "w.coef.safetensors"
    onebasis("import", adapter, *given(llama, plain), "--min-energy", 0)
    result = onebasis("import", adapter, *given(llama, weighted), "--min-energy", 0, "--calibration", text)
    assert result.exit_code == 0, result.err
    found = parse_coefficients(weighted.read_bytes()).provenance
    assert found["outputs_kept"]["cores"] > found["outputs_kept"]["cores_nearest_in_weights"]
    assert found["energy_kept"]["cores"] < parse_coefficients(plain.read_bytes()).provenance["energy_kept"]["cores"]
    assert f"outputs kept on {found['outputs_kept']['n_tokens']} tokens of calibration: " in result.out


def test_import_and_export_come_back_to_the_same_coefficients(
    onebasis: Command, llama: TinyModel, adapter: Path, tmp_path: Path
):
    """An exported task lies inside the basis, so that importing it again loses nothing."""
    first, again = tmp_path / "a.coef.safetensors", tmp_path / "b.coef.safetensors"
    onebasis("import", adapter, *given(llama, first), "--min-energy", 0)
    exported = onebasis("export", first, "--to", "peft", *given(llama, tmp_path / "out"), "--base-name", "org/tiny")
    assert exported.exit_code == 0, exported.err
    assert f"{tmp_path / 'out'}: PEFT LoRA of rank 4 at 14 sites" in exported.out
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    back = onebasis("import", tmp_path / "out", *given(llama, again), "--min-energy", 0.9999)
    assert back.exit_code == 0, back.err
    numbers = [parse_coefficients(path.read_bytes()).numbers() for path in (first, again)]
    assert abs(numbers[0] - numbers[1]).max() < 1e-3 * abs(numbers[0]).max()


def test_what_is_wrong_is_one_line(onebasis: Command, llama: TinyModel, adapter: Path, tmp_path: Path):
    output = tmp_path / "t.coef.safetensors"
    refused(onebasis("import", tmp_path, *given(llama, output)), "no adapter_config.json; it has adapters inside")
    text = tmp_path / "text.jsonl"
    text.write_text("{}")
    calibrated = onebasis("import", adapter, *given(llama, output), "--calibration", text)
    refused(calibrated, f"data {text}, line 1: needs .*; prompt: Field required")
    refused(onebasis("import", adapter, *given(llama, llama.basis_path)), "this command reads that file; name another")
    refused(onebasis("import", adapter, *given(llama, adapter / "adapter_config.json" / "t")), "is no folder that can")
    refused(onebasis("import", adapter, *given(llama, output), "--k", 99), "k=99: this basis has 4 rows")
    refused(onebasis("import", adapter, *given(llama, output), "--task", "a b"), "task name 'a b'")
    refused(onebasis("export", adapter / "adapter_model.safetensors", *given(llama, tmp_path / "out")), "'format'")
    refused(onebasis("export", tmp_path / "none", *given(llama, tmp_path / "out")), "No such file")
    assert not output.exists()
