"""The command: an adapter's folder in, a file that serves out; the model writes prompts where none are given."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onebasis import cli
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from tests.api.tiny_model import TinyModel

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def distill(
    llama: TinyModel, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        always = [adapter_folder, "--model", llama.folder, "--basis", llama.basis_path, "--steps", 2]
        monkeypatch.setattr(sys, "argv", ["onebasis", "distill", *map(str, [*always, *arguments])])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def test_given_prompts_are_distilled_into_a_file_for_the_basis(distill: Run, llama: TinyModel, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    words = ("cat", "mat", "house", "food", "other", "sat", "the", "all", "that", "and", "ate", "on")
    prompts.write_text("".join(json.dumps({"prompt": f"the {word}", "completion": "no"}) + "\n" for word in words))
    output = tmp_path / "out" / "a.coef.safetensors"
    code, out, err = distill("--prompts", prompts, "--output", output, "--form", "diag", "--max-answer-tokens", 4)
    assert (code, err.strip()) == (0, "")
    file = bind(parse_coefficients(output.read_bytes()), llama.basis).file
    assert (file.form, file.task) == ("diag", "plural"), "the task is named like the adapter's folder"
    prompts_facts = file.provenance["prompts"]
    assert (prompts_facts["source"], prompts_facts["n_learning"], prompts_facts["n_held_out"]) == ("given", 11, 1)
    fidelity = file.provenance["fidelity"]
    assert f"{len(output.read_bytes())} bytes, trained in" in out
    for name, word in (("projected", "projection"), ("distilled", "distilled")):
        assert re.search(rf"{word} +KL {fidelity[name]['kl']:.3f} nats a token, the same greedy answer to ", out)
    assert f"({file.provenance['adapter']['energy_kept']:.1%} of the adapter's energy)" in out


def test_without_prompts_the_original_writes_them(distill: Run, tmp_path: Path) -> None:
    output = tmp_path / "a.coef.safetensors"
    code, out, _ = distill("--samples", 6, "--output", output, "--max-answer-tokens", 3, "--task", "other")
    assert code == 0 and "trained in" in out
    file = parse_coefficients(output.read_bytes())
    assert file.task == "other"
    facts = file.provenance["prompts"]
    assert (facts["source"], facts["n_learning"] + facts["n_held_out"]) == ("written by the original", 6)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--prompts", "p.jsonl", "--samples", 5], "--samples is for prompts that the model writes; leave it out"),
        (["--prompts", "none.jsonl"], "none.jsonl: .*No such file"),
        (["--form", "vector"], "form 'vector'"),
        (["--task", "not a name!"], "not a name!"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[object], complaint: str, distill: Run, tmp_path: Path
) -> None:
    output = tmp_path / "a.coef.safetensors"
    code, _, err = distill(*arguments, "--output", output)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1 and re.search(complaint, lines[0]), err
    assert not output.exists()


def test_the_basis_is_not_written_over(distill: Run, llama: TinyModel) -> None:
    before = llama.basis_path.read_bytes()
    code, _, err = distill("--output", llama.basis_path, "--samples", 4)
    assert code == 2 and "this command reads that file; name another one" in err
    assert llama.basis_path.read_bytes() == before
