"""Trained files are scored through a real server, each task by its own answers."""

import asyncio

import pytest

from loadtests.common.errors import LoadTestError
from loadtests.common.subject import Subject
from loadtests.quality.served import ServedScore, markdown, score_served, score_task
from onebasis.fitting.data import chat_example, write_jsonl
from tests.api.conftest import server, shared_server, start_server, tiny
from tests.loadtests.conftest import RunsAlready

__all__ = ["server", "shared_server", "start_server", "tiny"]

PROMPTS = ("the cat sat", "a house", "all the food", "the mat")
CHOSEN = {"basis": "fleet", "k": 4, "form": "core", "seed": 0}


def row(task, way, exact_match, **fields):
    return {"cell": {"task": task, "way": way, "seed": 0, **fields}, "exact_match": exact_match, "file": f"{task}.coef"}


def items(path, answers):
    write_jsonl(path, map(chat_example, PROMPTS, answers))
    return path


def test_right_is_what_the_task_itself_answers(server, tmp_path):
    def answer(model, prompt):
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 64}
        return server.client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

    path = items(tmp_path / "alpha.jsonl", [f" {answer('alpha', prompt)}\n" for prompt in PROMPTS])
    url = f"http://127.0.0.1:{server.port}"
    assert asyncio.run(score_task(url, "alpha", path)) == (1.0, 4)
    assert asyncio.run(score_task(url, "beta", path))[0] < 1.0


def test_the_chosen_files_are_served_on_their_basis(tiny, start_server, tmp_path, monkeypatch):
    own = RunsAlready(f"http://127.0.0.1:{start_server().port}")
    served = []
    monkeypatch.setattr(Subject, "server", lambda subject, _folder: served.append(subject) or own)
    for task in ("alpha", "beta"):
        (tmp_path / f"{task}.coef").write_bytes(tiny.core_file())
        items(tmp_path / f"{task}.val.jsonl", ["no answer of a model"] * 4)
    rows = [row("beta", "fit", 0.5, **CHOSEN), row("alpha", "fit", 0.25, **CHOSEN), row("beta", "original", 0.75)]
    rows += [row("gamma", "fit", 0.1, **CHOSEN | {"k": 8})]
    options = {"folder": tmp_path, "model": tiny.folder, "basis": tiny.basis_path, "data": tmp_path}
    assert score_served(rows, **options, chosen=CHOSEN) == [
        ServedScore("alpha", None, 0.25, 0.0, 4),
        ServedScore("beta", 0.75, 0.5, 0.0, 4),
    ]
    assert [(one.model, one.basis) for one in served] == [(tiny.folder, tiny.basis_path)]
    assert own.is_stopped
    with pytest.raises(LoadTestError, match="run the sweep first"):
        score_served(rows, **options, chosen=CHOSEN | {"form": "diag"})


def test_the_share_is_of_the_tasks_that_have_an_original():
    text = markdown([ServedScore("a", 0.8, 0.7, 0.6, 64), ServedScore("b", None, 0.5, 0.4, 64)])
    assert "| a | 0.800 | 0.700 | 0.600 |" in text
    assert "| mean | 0.800 | 0.600 | 0.500 |" in text
    assert "1 tasks: 0.750" in text
