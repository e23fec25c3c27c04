"""The benchmarks that start servers of their own, on a tiny model."""

import json

import pytest

from loadtests import registered, registry, server
from loadtests.common.files import load_results
from loadtests.common.subject import Subject
from tests.loadtests.conftest import RunsAlready, subject_options
from tests.native import native_library

pytestmark = pytest.mark.usefixtures("small_products")

SMALL = ["--vocab", "10-250", "--prompt-tokens", "7", "--output-tokens", "4", "--warmup", "1", "--rounds", "2"]
SMALL += ["--requests", "3"]
ABOUT = ("format", "command", "machine", "settings")


@pytest.mark.usefixtures("servers_here")
def test_a_server_is_filled_and_measured_bare_and_with_few_and_all_tasks(tiny_subject, tmp_path, capsys):
    file = tmp_path / "server.json"
    arguments = [*subject_options(tiny_subject[0]), "--registered", "40", "--concurrency", "1,2", "--json", str(file)]
    assert server.main([*arguments, *SMALL]) == 0
    saved = json.loads(file.read_text())
    assert [row["scenario"] for row in saved["table"]] == ["bare", "1 task", "32 tasks", "40 tasks"] * 2
    assert all(part["n_errors"] == 0 and part["cpu"]["server_cores"] > 0 for part in saved["rounds"])
    assert len(saved["rounds"]) == 2 * 2 * 4
    order = [part["scenario"] for part in saved["rounds"] if part["load"] == "1 client"]
    assert order == ["bare", "1 task", "32 tasks", "40 tasks", "1 task", "32 tasks", "40 tasks", "bare"]
    limit = saved["limit"]
    assert limit["output_tokens_per_s"] == pytest.approx(4 * limit["gemm_tflops"] * 1e3 / limit["gflop_per_request"])
    assert "limit of these cores" in capsys.readouterr().out


def test_a_server_on_8_bit_weights_takes_turns_with_the_usual_one(tiny_subject, tmp_path):
    native_library()
    file = tmp_path / "int8.json"
    arguments = [*subject_options(tiny_subject[0]), "--int8", "--registered", "2", "--concurrency", "1"]
    assert server.main([*arguments, *SMALL, "--json", str(file)]) == 0
    rounds = json.loads(file.read_text())["rounds"]
    assert all(part["n_errors"] == 0 for part in rounds)
    first, second = (rounds[i : i + len(rounds) // 2] for i in (0, len(rounds) // 2))
    assert sorted({(part["server"], part["scenario"]) for part in first}) == sorted(
        {(name, scenario) for name in ("onebasis", "int8") for scenario in ("bare", "1 task", "2 tasks")}
    )
    assert {part["server"] for part in second} == {"onebasis", "int8"}


@pytest.mark.usefixtures("servers_here")
def test_servers_with_few_and_many_tasks_take_turns(tiny_subject, tmp_path):
    file = tmp_path / "registered.json"
    arguments = [*subject_options(tiny_subject[0]), "--registered", "3,30", "--json", str(file)]
    assert registered.main([*arguments, *SMALL]) == 0
    saved = json.loads(file.read_text())
    order = [part["server"] for part in saved["rounds"]]
    assert order == ["3 registered", "30 registered", "30 registered", "3 registered"]
    assert [part["n_models"] for part in saved["rounds"]] == [3, 30, 30, 3]
    assert [point["n_registered"] for point in saved["ttft"]] == [3, 30]
    few, many = saved["memory"]
    assert many["file_bytes"] == pytest.approx(10 * few["file_bytes"], rel=0.01)
    assert many["per_file_byte"] == (many["after_bytes"] - many["before_bytes"]) / many["file_bytes"]


def test_a_registry_is_filled_and_started_over(tiny_subject, tmp_path, capsys):
    file = tmp_path / "registry.json"
    arguments = [*subject_options(tiny_subject[0]), "--tasks", "9", "--clients", "2", "--json", str(file)]
    assert registry.main(arguments) == 0
    saved = load_results(file, "registry")
    assert json.loads(capsys.readouterr().out) == {name: saved[name] for name in saved if name not in ABOUT}
    assert (saved["tasks"], saved["settings"]["clients"]) == (9, 2)
    assert saved["machine"]["n_cores"] > 0 and saved["command"].startswith("python -m loadtests.registry --model")
    assert 0 < saved["upload_p50_ms"] <= saved["upload_p99_ms"]
    assert len(saved["log"]) == 2, "the empty registry and the full one are told at their starts"
    assert "9 tasks" in saved["log"][1]


def test_a_registry_that_refuses_a_task_ends_the_run(serve, tiny_subject, capsys, monkeypatch):
    refusing = RunsAlready(serve().url)
    monkeypatch.setattr(Subject, "server", lambda _subject, _folder, **_options: refusing)
    assert registry.main([*subject_options(tiny_subject[0]), "--tasks", "1"]) == 1
    assert "task-00000: 400" in capsys.readouterr().err
    assert refusing.is_stopped


def test_results_of_a_registry_that_could_not_be_written_are_not_measured(tiny_subject, tmp_path, capsys):
    assert registry.main([*subject_options(tiny_subject[0]), "--json", str(tmp_path / "nowhere" / "f.json")]) == 1
    assert "create it first" in capsys.readouterr().err
