"""Steps without HTTP: the same tokens on both sides, and a difference of the numbers stops the run."""

import json

import pytest

from loadtests.engine import fidelity
from loadtests.engine.__main__ import case_results, main
from loadtests.engine.sides import INT8, NATIVE, TRANSFORMERS, Case, side_name
from onebasis.model.native_decoder import NativeDecoder
from tests.loadtests.conftest import subject_options
from tests.native import native_library

SMALL = ["--batches", "1,3", "--prefills", "1x5,2x20", "--tasks", "1,2", "--rounds", "2", "--texts", "1"]
SMALL += ["--threads", "1"]


def test_every_case_has_all_sides_and_both_comparisons(tiny_subject, tmp_path):
    native_library()
    file = tmp_path / "engine.json"
    assert main([*subject_options(tiny_subject[0]), *SMALL, "--json", str(file)]) == 0
    saved = json.loads(file.read_text())
    sides = [(step["kind"], step["n_seqs"], step["n_new"], step["side"]) for step in saved["steps"]]
    one = [TRANSFORMERS, *(side_name(decoder, n) for decoder in (NATIVE, INT8) for n in (0, 1))]
    several = [TRANSFORMERS, *(side_name(decoder, n) for decoder in (NATIVE, INT8) for n in (0, 1, 2))]
    assert sides == [
        *(("decode", 1, 1, name) for name in one),
        *(("decode", 3, 1, name) for name in several),
        *(("prefill", 1, 5, name) for name in one),
        *(("prefill", 2, 20, name) for name in several),
    ]
    assert all(step["ratio"] == 1 for step in saved["steps"] if step["side"] == TRANSFORMERS)
    tasks, bare, int8_tasks, int8_bare, rounded = saved["fidelity"]
    assert tasks["n_positions"] == bare["n_positions"] > 50
    assert 0.9 < bare["top1_agreement"] <= 1 and 0 < bare["relative_error"] < 0.03
    assert bare["relative_error"] < int8_bare["relative_error"] < 0.1 and int8_tasks["what"] == "native int8, tasks"
    assert 0 < tasks["relative_error"] < 0.03 and 0 < rounded["relative_error"] < 0.03


def test_the_ratio_is_over_transformers_median():
    case = Case("decode", 8, 80, 1, 96)
    _, bare = case_results(case, {TRANSFORMERS: [0.2, 0.4, 0.9], side_name(NATIVE, 0): [0.1] * 3})
    assert bare.ratio == pytest.approx(0.25) and bare.step_ms.median == pytest.approx(100)


def test_logits_of_another_model_stop_the_run(tiny_subject, monkeypatch, capsys):
    native_library()
    right = NativeDecoder.forward
    monkeypatch.setattr(NativeDecoder, "forward", lambda self, batch: 1.2 * right(self, batch))
    assert main([*subject_options(tiny_subject[0]), *SMALL]) == 1
    assert "native step and transformers disagree" in capsys.readouterr().err


def test_tasks_that_are_not_those_of_the_file_stop_the_run(tiny_subject, monkeypatch, capsys):
    native_library()
    right = fidelity.merged_weight
    monkeypatch.setattr(fidelity, "merged_weight", lambda weight, factors, core: right(weight, factors, -core))
    assert main([*subject_options(tiny_subject[0]), *SMALL]) == 1
    assert "native, tasks: relative error" in capsys.readouterr().err
