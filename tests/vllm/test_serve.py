"""`onebasis serve --engine vllm` as a process: the signals that end it, and what they leave behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from onebasis.demo.server_process import ServerProcess
from tests.api.server import wait_until
from tests.api.test_secrets_in_logs import free_port
from tests.api.tiny_model import BASE_NAME

START_S = 280


@pytest.fixture
def served(tiny, tmp_path) -> Sequence[str]:
    return [
        *("--model", str(tiny.folder), "--basis", str(tiny.basis_path), "--served-model-name", BASE_NAME),
        *("--store", f"sqlite:///{tmp_path}/tasks.db", "--dtype", "float32"),
        *("--kv-cache-mib", "8", "--arena-mib", "1"),
    ]


@pytest.fixture
def options(served, monkeypatch) -> Sequence[str]:
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiler: it starts sooner
    return ["--engine", "vllm", *served]


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def check_gone(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, "processes were left behind"


def test_sigterm_lets_what_runs_finish_and_leaves_no_process_behind(options, tiny, tmp_path):
    with ServerProcess(options, port=free_port(), log=tmp_path / "log", ready_timeout_s=START_S) as server:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            assert client.put("/v1/tasks/mine", content=tiny.core_file(0)).status_code == 201
            body = {"model": "mine", "prompt": "the cat", "max_tokens": 500, "ignore_eos": True, "temperature": 0}
            with (
                ThreadPoolExecutor(1) as pool,
                client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer,
            ):
                lines = answer.iter_lines()
                next(lines)
                own = children(server.process)
                assert {process.name() for process in own} >= {"VLLM::EngineCore", "VLLM::Worker"}
                server.process.send_signal(signal.SIGTERM)
                code = pool.submit(server.process.wait, 60)
                events = [line.removeprefix("data: ") for line in lines if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        assert code.result() == 0
        check_gone(own)


def test_sigterm_while_vllm_starts_leaves_no_process_behind(options):
    process = subprocess.Popen([sys.executable, "-m", "onebasis.cli", "serve", "--port", "0", *options])
    try:
        wait_until(lambda: any("VLLM" in child.name() for child in children(process)), "vLLM does not start", START_S)
        own = children(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        check_gone(own)
    finally:
        process.kill()


def test_two_ranks_answer_over_http_as_the_native_engine(options, served, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # or vLLM wants a NUMA node for each rank
    files = {name: tiny.core_file(seed) for seed, name in enumerate(("one", "other"))}

    def answers(options: Sequence[str]) -> list[str]:
        """Greedily, to every model at once."""
        with (
            ServerProcess(options, port=free_port(), log=tmp_path / "log", ready_timeout_s=START_S) as server,
            httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client,
            ThreadPoolExecutor(3) as pool,
        ):
            for name, data in files.items():
                client.put(f"/v1/tasks/{name}", content=data).raise_for_status()

            def ask(model: str) -> str:
                body = {"model": model, "prompt": "the cat", "max_tokens": 20, "ignore_eos": True, "temperature": 0}
                answer = client.post("/v1/completions", json=body).raise_for_status().json()
                return str(answer["choices"][0]["text"])

            return list(pool.map(ask, (BASE_NAME, *files)))

    wanted = answers(served)
    assert len(set(wanted)) == 3, "the tasks change the answers"
    assert answers([*options, "--tensor-parallel-size", "2"]) == wanted
