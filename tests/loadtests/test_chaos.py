"""The chaos run: what it accepts and what it must notice, and a short one on real processes."""

import json

import pytest

from loadtests.chaos.__main__ import main
from loadtests.chaos.history import LAG_S, Answer, History, differences
from tests.loadtests.conftest import subject_options

TEXTS = {"x": "of x", "y": "of y"}


@pytest.fixture
def history():
    """x from 10 s on, by replica 0; y from 20 s by replica 1; deleted at 30 s; x again from 40 s."""
    history = History()
    history.add("x", 0, 10.0, 10.1)
    history.add("y", 1, 20.0, 20.1)
    history.add(None, 0, 30.0, 30.1)
    history.add("x", 0, 40.0, 40.1)
    return history


def answer(sent_s, done_s, digest="x", *, replica=0, asked=None, text=None):
    return Answer("task", asked, replica, sent_s, done_s, 200, digest, TEXTS[digest] if text is None else text)


def missing(sent_s, done_s, asked=None):
    return Answer("task", asked, 0, sent_s, done_s, 404, code="model_not_found")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (answer(11, 12), None),
        (answer(9, 10.05), None),
        (answer(8, 9.9), "not current"),
        (answer(20.1 + LAG_S - 0.1, 23, replica=0), None),
        (answer(20.1 + LAG_S + 0.1, 23, replica=0), "not current"),
        (answer(20.2, 23, replica=1), "not current"),
        (answer(20.05, 23, replica=1), None),
        (answer(11, 12, "y"), "not current"),
        (answer(11, 12, text="of y"), "another text"),
        (answer(11, 12, "x", asked="y"), "another digest"),
        (answer(21, 22, "x", asked="x"), None),
        (missing(9, 10.05), None),
        (missing(11, 12), "there all the time"),
        (missing(29, 30), None),
        (missing(40.2, 41), "there all the time"),
        (missing(21, 22, asked="x"), "there all the time"),
        (missing(21, 30, asked="x"), None),
        (missing(11, 12, asked="y"), None),
        (Answer("task", None, 0, 11, 12, 503, code="store_unavailable"), "HTTP 503 store_unavailable"),
    ],
)
def test_an_answer_is_judged_by_what_may_have_been_true_meanwhile(history, given, complaint):
    found = history.complaint(given, TEXTS)
    assert found is None if complaint is None else complaint in (found or "")


def test_a_lost_write_and_a_stranger_s_are_told(history):
    stored = [(3, None), (4, "x")]
    assert differences(history, stored) == []
    assert differences(history, stored[:1]) == ["lost: generation 4 at x"]
    assert differences(history, [(2, "y"), stored[0], (4, "y"), (5, "x")]) == [
        "lost: generation 4 at x",
        "never acknowledged, or erased: generation 2 at y",
        "never acknowledged, or erased: generation 4 at y",
        "never acknowledged, or erased: generation 5 at x",
    ]


def test_a_replica_that_is_killed_under_load_loses_and_mixes_up_nothing(tiny_subject, tmp_path):
    file = tmp_path / "chaos.json"
    arguments = [*subject_options(tiny_subject[0]), "--minutes", "0.15", "--kills", "1", "--json", str(file)]
    assert main([*arguments, "--names", "4", "--readers", "3"]) == 0
    saved = json.loads(file.read_text())
    counts = saved["counts"]
    assert (saved["n_complaints"], counts["kills"]) == (0, 1)
    for kind in ("acknowledged upload", "acknowledged roll back", "acknowledged delete", "answers 200"):
        assert counts[kind] > 0
    assert counts["distinct texts of the files"] > 1
