"""lm-eval scores a task through the server and finds the numbers that transformers computes on merged weights."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from tests.api.server import TASKS, RunningServer
from tests.api.tiny_model import BASE_NAME, TinyModel
from tests.e2e.reference import Reference

MAX_DIFFERENCE = 1e-4  # of a sum over up to 10 tokens, float32, mixed batches against one text at a time
DOCS = [
    {"text": "the cat sat on", "choices": [" the mat", " all of that food", " a"], "target": 0},
    {"text": "the other cat ate", "choices": [" the house", " all of that other food", " cat"], "target": 1},
    {"text": "in the house", "choices": [" and then", " the cat sat", "!"], "target": 1},
    {"text": "and then", "choices": [" on the mat and then the other", " xyz", " é"], "target": 2},
    {"text": "a", "choices": [" the mat", " house", " 12345"], "target": 0},
]
CHOOSE = """
task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: target
doc_to_choice: choices
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[target]}}"
generation_kwargs: {until: ["zzz"], max_gen_toks: 6, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def found(
    shared_server: RunningServer, tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Results and samples of each job, by model. Two models of one basis choose, the third writes."""
    folder = tmp_path_factory.mktemp("lm_eval")
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / "choose.yaml").write_text(CHOOSE % data)
    (folder / "write.yaml").write_text(WRITE % data)
    url = f"http://127.0.0.1:{shared_server.port}/v1"
    choose = {"kind": "local-completions", "url": f"{url}/completions", "task": "choose"}
    write = {"kind": "local-chat-completions", "url": f"{url}/chat/completions", "task": "write"}
    jobs = [
        choose | {"model": TASKS[0], "tokenizer": str(tiny.folder)},
        choose | {"model": BASE_NAME, "tokenizer": None},
        write | {"model": TASKS[1], "tokenizer": None},
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("lm_eval_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(folder / "jobs.json"), str(folder / "found.json")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((folder / "found.json").read_text())
    return {job["model"]: answer for job, answer in zip(jobs, answers, strict=True)}


def loglikelihood(model: Any, tiny: TinyModel, context: str, choice: str) -> tuple[float, bool]:
    """Of `choice` behind `context`, and whether greedy decoding would write it."""
    n_context = len(tiny.encode(context))
    ids = tiny.encode(context + choice)
    with torch.inference_mode():
        table = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    behind = range(n_context, len(ids))
    return sum(table[i - 1, ids[i]].item() for i in behind), all(table[i - 1].argmax() == ids[i] for i in behind)


@pytest.mark.parametrize("model", [TASKS[0], BASE_NAME])
def test_loglikelihoods_are_those_of_the_merged_model(
    found: dict[str, dict[str, Any]], tiny: TinyModel, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base(tiny.folder, dtype=torch.float32, device=torch.device("cpu"))
    basis = load_basis(tiny.basis_path, dtype=torch.float32, device=torch.device("cpu"))
    bound = None if model == BASE_NAME else bind(parse_coefficients(tiny.core_file(TASKS.index(model))), basis.spec)
    differences, n_right = [], 0
    with Reference(base, basis).merged(bound):
        for doc, sample in zip(DOCS, found[model]["samples"], strict=True):
            assert sample["doc"]["text"] == doc["text"]
            expected = [loglikelihood(base.model, tiny, doc["text"], choice) for choice in doc["choices"]]
            for ((number, is_greedy),), (wanted, wanted_greedy) in zip(sample["answers"], expected, strict=True):
                differences.append(abs(float(number) - wanted))
                assert str(is_greedy) == str(wanted_greedy)
            numbers = [number for number, _ in expected]
            n_right += numbers.index(max(numbers)) == doc["target"]
    with capsys.disabled():
        print(f"\n{model}: {len(differences)} loglikelihoods, largest difference {max(differences):.2e}")
    assert max(differences) < MAX_DIFFERENCE
    assert found[model]["results"]["acc,none"] == pytest.approx(n_right / len(DOCS))


def test_a_task_and_the_base_score_differently(found: dict[str, dict[str, Any]]) -> None:
    of_task, of_base = (found[model]["samples"][0]["answers"][0][0][0] for model in (TASKS[0], BASE_NAME))
    assert abs(float(of_task) - float(of_base)) > 100 * MAX_DIFFERENCE


def test_a_chat_task_is_generated_and_scored(found: dict[str, dict[str, Any]], shared_server: RunningServer) -> None:
    model = TASKS[1]
    for doc, sample in zip(DOCS, found[model]["samples"], strict=True):
        messages = [{"role": "user", "content": doc["text"]}]
        answer = shared_server.chat(model=model, messages=messages, max_tokens=6, ignore_eos=False)
        assert sample["answers"][0][0].strip() == answer["choices"][0]["message"]["content"].strip()
    assert "exact_match,none" in found[model]["results"]
