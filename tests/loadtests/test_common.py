"""What all benchmarks share: turns, quartiles, CPU shares, synthetic tasks, limits, files."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loadtests.common.errors import LoadTestError
from loadtests.common.files import check_target, load_results, save_results
from loadtests.common.limits import request_flop
from loadtests.common.machine import PROJECT, describe_machine, git_commit
from loadtests.common.processes import CpuTimes, cpu_times, cpu_use, memory_bytes, server_process
from loadtests.common.subject import running
from loadtests.common.tasks import synthetic_tasks
from loadtests.common.timing import interleave, percentile, quartiles
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from tests.loadtests.conftest import RunsAlready


@pytest.mark.parametrize("n", [1, 2, 5, 99, 101])
def test_percentiles_are_numpys(n):
    values = np.random.default_rng(n).exponential(size=n).tolist()
    for p in (0, 25, 50, 90, 99, 100):
        assert percentile(values, p) == pytest.approx(np.percentile(values, p))


def test_a_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_quartiles_hold_the_middle_half():
    found = quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.n, found.q1, found.median, found.q3) == (5, 2.0, 3.0, 4.0)


def test_sides_take_turns_and_each_round_begins_with_the_next():
    called = []
    sides = {name: lambda name=name: called.append(name) for name in "abc"}
    times_s = interleave(sides, n_rounds=4)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab" + "abc", "one call each to warm up, then four rounds"
    assert {name: len(values) for name, values in times_s.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_fast_side_is_called_often_and_the_mean_counts():
    calls = []
    times_s = interleave({"slow": lambda: time.sleep(0.02), "fast": lambda: calls.append(1)}, n_rounds=2, least_s=0.01)
    assert len(calls) > 100
    assert min(times_s["slow"]) >= 0.02 and max(times_s["fast"]) < 0.001


def test_cores_of_others_are_what_neither_server_nor_client_took():
    use = cpu_use(CpuTimes(0.0, 0.0, 0.0, 0.0), CpuTimes(10.0, 19.0, 11.0, 3.0), has_server=True)
    assert (use.server_cores, use.other_cores) == (1.1, 0.5)
    assert cpu_use(CpuTimes(0, 0, 0, 0), CpuTimes(1, 1, 0, 1), has_server=False).server_cores is None


def test_the_server_is_found_by_its_port(serve):
    process = server_process(serve().url)
    assert process is not None and process.pid == psutil.Process().pid
    assert memory_bytes(process) > 20e6
    assert cpu_times(process).client_s == 0, "what one process takes is not counted twice"
    assert server_process("http://127.0.0.1:1") is None


def test_memory_is_that_of_a_process_and_its_children():
    child = "import sys; held = bytearray(b'x' * 60_000_000); print('ready', flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert 60e6 < memory_bytes(psutil.Process(process.pid)) < 120e6
        process.stdin.close()


def test_servers_start_at_once_and_none_is_left_behind_when_another_fails():
    meeting = threading.Barrier(2, timeout=10)

    class Starts(RunsAlready):
        def __enter__(self):
            meeting.wait()
            return super().__enter__()

    class Fails(RunsAlready):
        def __enter__(self):
            meeting.wait()
            raise LoadTestError("no room")

    good, other = Starts(""), Starts("")
    with running([good, other]):
        assert not good.is_stopped
    assert good.is_stopped and other.is_stopped
    good = Starts("")
    with pytest.raises(LoadTestError, match="no room"), running([good, Fails("")]):
        pytest.fail("the block was entered")
    assert good.is_stopped


def test_synthetic_tasks_fit_the_basis_and_differ(tiny_subject):
    subject, basis = tiny_subject
    made = dict(synthetic_tasks(subject.coefficients, ["a", "b", "c"], seed=3))
    assert len(set(made.values())) == 3
    sizes = {len(data) - subject.coefficients[0].stat().st_size for data in made.values()}
    assert max(map(abs, sizes)) < 200, "full size, but for the metadata"
    for data in made.values():
        bind(parse_coefficients(data), basis)
    assert made == dict(synthetic_tasks(subject.coefficients, ["a", "b", "c"], seed=3))
    source, copy = (parse_coefficients(d).numbers() for d in (subject.coefficients[0].read_bytes(), made["a"]))
    assert 0.03 < np.std(copy - source) / np.sqrt(np.mean(source**2)) < 0.07


def test_operations_of_a_request_are_those_that_torch_counts():
    sizes = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "vocab_size": 128, "head_dim": 16}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    n_weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    n_head = model.lm_head.weight.numel()
    assert request_flop(config, 7, 5) == 2 * (11 * (n_weights - n_head) + 5 * n_head)


def test_the_commit_tells_of_edits(tmp_path):
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{head}-dirty"


def test_a_file_says_which_benchmark_wrote_it(tmp_path):
    path = tmp_path / "run.json"
    save_results(
        path, benchmark="one", command="c", machine=describe_machine(), settings={"seed": 4}, results={"cells": [1]}
    )
    saved = load_results(path, "one")
    assert (saved["settings"], saved["cells"], saved["command"]) == ({"seed": 4}, [1], "c")
    assert saved["machine"]["packages"]["torch"]
    with pytest.raises(LoadTestError, match="reads 'onebasis-two/1'"):
        load_results(path, "two")
    with pytest.raises(LoadTestError, match="no folder"):
        check_target(tmp_path / "none" / "run.json")
    with pytest.raises(ValueError, match="JSON"):
        save_results(path, benchmark="one", command="", machine=describe_machine(), settings={}, results={"x": np.nan})


def test_a_results_file_does_not_say_where_the_project_and_the_home_folder_are(tmp_path):
    settings = {"a": PROJECT / "loadtests", "b": [Path.home() / "model"], "c": Path("/elsewhere/file")}
    path = tmp_path / "results.json"
    save_results(path, benchmark="one", command="", machine=describe_machine(), settings=settings, results={})
    assert load_results(path, "one")["settings"] == {"a": "loadtests", "b": ["~/model"], "c": "/elsewhere/file"}
