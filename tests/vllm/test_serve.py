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
def options(tiny, tmp_path, monkeypatch) -> Sequence[str]:
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # no compiler: it starts sooner
    return [
        *("--engine", "vllm", "--model", str(tiny.folder), "--basis", str(tiny.basis_path)),
        *("--served-model-name", BASE_NAME, "--store", f"sqlite:///{tmp_path}/tasks.db"),
        *("--dtype", "float32", "--kv-cache-mib", "8", "--arena-mib", "1"),
    ]


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def check_gone(processes: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive, "processes were left behind"


def test_sigterm_lets_what_runs_finish_and_leaves_no_process_behind(options, tiny, tmp_path):
    with ServerProcess(options, port=free_port(), log=tmp_path / "log", ready_timeout_s=START_S) as server:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            assert client.put("/v1/tasks/mine", content=tiny.core_file(0)).status_code == 201
            body = {"model": "mine", "prompt": "the cat", "max_tokens": 1500, "ignore_eos": True, "temperature": 0}
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
