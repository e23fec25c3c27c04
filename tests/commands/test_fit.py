"""`onebasis fit` and `onebasis basis mix` as an operator runs them: files in, files and a report out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from onebasis.cli import app
from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.commands.fit_data import output_files, task_files
from onebasis.core.errors import InvalidBasis, InvalidTaskName, SetupError
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.peft.adapter import open_adapter
from onebasis.fitting.peft.sites import site_shapes
from tests.api.tiny_model import TinyModel, save_tiny_model
from tests.fitting.tiny import tiny_base

QUICK = ["--steps", "4", "--batch-size", "2", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def threads_as_before() -> Iterator[None]:
    """The command sets them for its process, which here is the tests'."""
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks' examples, `cats.jsonl` and `dogs.jsonl`."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("cats", "dogs"):
        lines = [json.dumps({"prompt": f"{name} {i} the", "completion": f" {name}"}) + "\n" for i in range(20)]
        (data / f"{name}.jsonl").write_text("".join(lines))
    return data


def run(*arguments: object) -> str:
    """What the command printed. An error of the operator comes out as it is."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fit(llama: TinyModel, *arguments: object) -> str:
    return run("fit", "--model", llama.folder, "--basis", llama.basis_path, *QUICK, *arguments)


# ---------------------------------------------------------------- the run


def test_one_task_to_one_file(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "my.coef.safetensors"
    printed = fit(llama, "--data", folder / "cats.jsonl", "--task", "felines", "--output", output)
    file = parse_coefficients(output.read_bytes())
    assert (file.task, file.provenance["data"]["n_train"], file.provenance["data"]["n_validation"]) == (
        "felines",
        18,
        2,
    )
    assert "felines" in printed
    assert str(file.size_bytes) in printed


def test_a_folder_is_several_tasks_and_json_is_the_whole_report(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    options = ["--evaluate-every", "2", "--compare", "--json", "--checkpoint", tmp_path / "run"]
    report = json.loads(fit(llama, "--data", folder, "--output", tmp_path / "out", *options))
    assert [(row["training"]["task"], row["trained"]) for row in report] == [
        ("cats", "core"),
        ("cats", "LoRA r=8"),
        ("dogs", "core"),
        ("dogs", "LoRA r=8"),
    ]
    assert report[1]["output"] is report[1]["basis"] is None
    for row in report[::2]:
        file = parse_coefficients(Path(row["output"]).read_bytes())
        bind(file, llama.basis)
        assert row["basis"] == file.basis
        assert (row["size_bytes"], row["training"]["n_steps"]) == (file.size_bytes, 4)
        assert row["training"]["kept_step"] == file.provenance["steps"]["kept"]
        assert [step for step, _ in row["training"]["evaluations"]] == [2, 4]
    assert not (tmp_path / "run").exists(), "a run that is over leaves no checkpoint"


def test_validation_by_name(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.safetensors"
    fit(llama, "--data", folder / "cats.jsonl", "--validation", folder / "dogs.jsonl", "--output", output)
    assert parse_coefficients(output.read_bytes()).provenance["data"]["n_validation"] == 20


def test_mixing_cores_then_a_vector(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    sources = []
    for seed in range(3):
        path = tmp_path / f"{seed}.coef.safetensors"
        path.write_bytes(llama.core_file(seed))
        sources.append(path)
    mixed = tmp_path / "mixed.basis.safetensors"
    printed = run("basis", "mix", "--basis", llama.basis_path, *sources, "--n-mix", "2", "--output", mixed)
    spec = read_basis_spec(mixed)
    assert spec.digest in printed
    fit_options = ["--data", folder / "cats.jsonl", "--form", "vector", "--output", tmp_path / "v.safetensors"]
    run("fit", "--model", llama.folder, "--basis", mixed, *QUICK, *fit_options)
    file = parse_coefficients((tmp_path / "v.safetensors").read_bytes())
    bind(file, spec)
    assert (file.form, len(file.values)) == ("vector", 2 * len(spec.sites))


def test_mixing_cores_learnt_with_the_vectors(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    learned = tmp_path / "learned.basis.safetensors"
    options = ["--form", "vector", "--learn-mixing", learned, "--n-mix", "1", "--checkpoint", tmp_path / "run"]
    printed = fit(llama, "--data", folder, "--output", tmp_path / "out", *options)
    spec = read_basis_spec(learned)
    assert spec.digest in printed
    assert "14 sites with 1 mixing cores learnt on 2 tasks" in printed
    for name in ("cats", "dogs"):
        bound = bind(parse_coefficients((tmp_path / "out" / f"{name}.coef.safetensors").read_bytes()), spec)
        assert (bound.file.form, len(bound.file.values)) == ("vector", 14)
    assert not (tmp_path / "run").exists()
    one_more = ["--data", folder / "cats.jsonl", "--form", "vector", "--output", tmp_path / "later.safetensors"]
    run("fit", "--model", llama.folder, "--basis", learned, *QUICK, *one_more)
    bind(parse_coefficients((tmp_path / "later.safetensors").read_bytes()), spec)


def test_json_has_the_basis_that_was_learnt(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    learned = tmp_path / "learned.basis.safetensors"
    options = ["--form", "vector", "--learn-mixing", learned, "--n-mix", "1", "--json"]
    report = json.loads(fit(llama, "--data", folder, "--output", tmp_path / "out", *options))
    assert [row["basis"] for row in report] == [read_basis_spec(learned).digest] * 2


def test_the_compared_lora_is_saved_for_peft(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    options = ["--compare", "--lora-output", tmp_path / "loras", "--lora-learning-rate", "0.02", "--json"]
    report = json.loads(fit(llama, "--data", folder, "--output", tmp_path / "out", *options))
    assert [row["output"] for row in report[1::2]] == [str(tmp_path / "loras" / name) for name in ("cats", "dogs")]
    base = tiny_base(llama.folder)
    opened = open_adapter(tmp_path / "loras" / "cats", site_shapes(base.model))
    assert (opened.ranks, opened.scales, len(opened.sites)) == ((8,), (1.0,), 14)
    tokens = torch.arange(2, 42)[None]
    with torch.no_grad():
        bare = base.model(tokens).logits
        with applied_updates(base, {site: opened.update(site) for site in opened.sites}):
            by_us = base.model(tokens).logits
        by_peft = PeftModel.from_pretrained(base.model, tmp_path / "loras" / "cats")(tokens).logits
    torch.testing.assert_close(by_peft, by_us, rtol=1e-4, atol=1e-4)
    assert (by_us - bare).abs().max() > 0.05, "nothing was learnt that could differ"
    with pytest.raises(SetupError, match="loras/cats is not empty; name a new folder"):
        fit(llama, "--data", folder, "--output", tmp_path / "again", *options)
    assert not (tmp_path / "again").exists(), "refused before anything was trained"


def test_options_of_what_is_not_asked_for_are_refused(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--lora-output needs --compare"):
        fit(llama, "--data", folder, "--output", tmp_path, "--lora-output", tmp_path / "loras")
    with pytest.raises(SetupError, match="--lora-learning-rate needs --compare"):
        fit(llama, "--data", folder, "--output", tmp_path, "--lora-learning-rate", "0.001")
    with pytest.raises(SetupError, match="--save-every needs --checkpoint"):
        fit(llama, "--data", folder, "--output", tmp_path, "--save-every", "25")
    with pytest.raises(SetupError, match="--n-mix is for --learn-mixing"):
        fit(llama, "--data", folder, "--output", tmp_path, "--form", "vector", "--n-mix", "2")
    with pytest.raises(SetupError, match="--learn-mixing goes with --form vector"):
        fit(llama, "--data", folder, "--output", tmp_path, "--learn-mixing", tmp_path / "b")
    with pytest.raises(SetupError, match="this command reads that file; name another one"):
        fit(llama, "--data", folder, "--output", tmp_path, "--form", "vector", "--learn-mixing", llama.basis_path)
    with pytest.raises(InvalidBasis, match="8 mixing cores from 2 tasks: allowed are 1 to 1"):
        fit(llama, "--data", folder, "--output", tmp_path, "--form", "vector", "--learn-mixing", tmp_path / "b")


def test_resume_without_a_checkpoint_is_refused(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--resume needs --checkpoint"):
        fit(llama, "--data", folder, "--output", tmp_path, "--resume")


def test_validation_for_other_tasks_is_refused(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--validation has cats, --data has cats, dogs; give the same tasks"):
        fit(llama, "--data", folder, "--validation", folder / "cats.jsonl", "--output", tmp_path)
    one = ["--data", folder / "cats.jsonl", "--output", tmp_path]
    with pytest.raises(SetupError, match="--validation has cats, dogs, --data has cats; give the same tasks"):
        fit(llama, *one, "--validation", folder)
    with pytest.raises(SetupError, match="--validation has dogs, --data has cats; give the same tasks"):
        fit(llama, *one, "--validation", f"dogs={folder / 'dogs.jsonl'}")


def test_one_name_for_several_tasks_is_refused(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--task one names one task, --data has cats, dogs; leave --task out"):
        fit(llama, "--data", folder, "--task", "one", "--output", tmp_path)


def test_a_checkpoint_is_never_written_over_unasked(llama: TinyModel, folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run"
    checkpoint.write_bytes(b"hours of training")
    options = ["--data", folder, "--output", tmp_path / "out", "--checkpoint", checkpoint]
    with pytest.raises(SetupError, match="run: exists; go on from it with --resume, or name a new file"):
        fit(llama, *options)
    assert checkpoint.read_bytes() == b"hours of training"


def test_what_could_not_be_written_is_refused_before_anything_is_trained(
    llama: TinyModel, folder: Path, tmp_path: Path
) -> None:
    before = llama.basis_path.read_bytes()
    with pytest.raises(SetupError, match="this command reads that file; name another one"):
        fit(llama, "--data", folder / "cats.jsonl", "--output", llama.basis_path)
    assert llama.basis_path.read_bytes() == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="file is no folder that can be written to"):
        fit(llama, "--data", folder, "--output", tmp_path / "file" / "out")
    with pytest.raises(SetupError, match="file is no folder that can be written to"):
        fit(llama, "--data", folder, "--output", tmp_path / "out", "--checkpoint", tmp_path / "file" / "run")
    with pytest.raises(SetupError, match=r"learning rate 0\.0: needs a finite number above 0"):
        fit(llama, "--data", folder, "--output", tmp_path / "out", "--compare", "--lora-learning-rate", "0")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- which files


def test_files_folders_and_names(folder: Path) -> None:
    cats, dogs = folder / "cats.jsonl", folder / "dogs.jsonl"
    both = {"cats": cats, "dogs": dogs}
    assert task_files("--data", [str(folder)], None) == both
    assert task_files("--data", [str(cats), str(dogs)], None) == both
    assert task_files("--data", [f"a={cats}", f"b={dogs}"], None) == {"a": cats, "b": dogs}
    assert task_files("--data", [str(cats)], "mine") == {"mine": cats}
    odd = cats.rename(folder / "a=b.jsonl")
    assert task_files("--data", [f"c={odd}"], None) == {"c": odd}
    assert task_files("--data", [str(odd)], "c") == {"c": odd}


def test_ambiguous_files_are_refused(folder: Path, tmp_path: Path) -> None:
    cats = folder / "cats.jsonl"
    with pytest.raises(SetupError, match="task 'cats' comes twice"):
        task_files("--data", [str(folder), str(cats)], None)
    with pytest.raises(SetupError, match=r"no \*\.jsonl in this folder"):
        task_files("--data", [str(tmp_path)], None)
    with pytest.raises(InvalidTaskName):
        task_files("--data", [f"not a name={cats}"], None)


def test_outputs(tmp_path: Path) -> None:
    assert output_files(tmp_path, ["a", "b"]) == {name: tmp_path / f"{name}.coef.safetensors" for name in "ab"}
    assert output_files(tmp_path / "x.safetensors", ["a"]) == {"a": tmp_path / "x.safetensors"}
    with pytest.raises(SetupError, match="is one file, there are 2 tasks; give a folder"):
        output_files(tmp_path / "x.safetensors", ["a", "b"])
