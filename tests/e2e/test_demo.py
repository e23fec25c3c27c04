"""The README's first command, and what an operator relies on, with real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import MODEL_NAME
from onebasis.demo.run import pack_options
from onebasis.demo.server_process import ServerProcess
from onebasis.demo.tasks import DEMO_TASKS

CUDA_LIBRARIES_BYTES = 0.4e9  # they come into memory with a torch that is built for CUDA, used or not
MAX_RESIDENT_BYTES = 1.2e9 + (CUDA_LIBRARIES_BYTES if torch.version.cuda is not None else 0)


def test_the_demo_answers_every_task_and_exits_0(free_port: int, model_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onebasis.cli", "demo", "run", "--once", "--port", str(free_port)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"COLUMNS": "160"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for task in DemoPack.shipped().tasks():
        assert task in done.stdout
    assert "distinct tasks in a step" in done.stdout


def test_an_acknowledged_upload_survives_kill_9(
    free_port: int, model_folder: Path, pack: DemoPack, tmp_path: Path
) -> None:
    options = pack_options(model_folder, pack, tmp_path / "tasks.db")
    with ServerProcess(options, port=free_port, log=tmp_path / "first.log") as server:
        upload = httpx.put(f"{server.url}/v1/tasks/date_iso", content=pack.coefficients("date_iso").read_bytes())
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert upload.status_code == 201
    (example,) = DEMO_TASKS["date_iso"].examples("val", 1)
    with ServerProcess(options, port=free_port, log=tmp_path / "second.log") as server:
        card = httpx.get(f"{server.url}/v1/tasks/date_iso").json()
        answer = _ask(server.url, "date_iso", example.prompt)
    assert card["digest"] == upload.json()["digest"]
    assert answer == example.answer


def test_model_basis_and_all_tasks_in_use_stay_under_the_memory_bound(
    free_port: int, model_folder: Path, pack: DemoPack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = pack_options(model_folder, pack, tmp_path / "tasks.db")
    with ServerProcess(options, port=free_port, log=tmp_path / "server.log") as server:
        for task in pack.tasks():
            httpx.put(f"{server.url}/v1/tasks/{task}", content=pack.coefficients(task).read_bytes()).raise_for_status()
            _ask(server.url, task, DEMO_TASKS[task].examples("val", 1)[0].prompt)
        resident_bytes = psutil.Process(server.process.pid).memory_info().rss
    with capsys.disabled():
        print(f"\n{resident_bytes / 1e6:.0f} MB resident")
    assert len(list(pack.tasks())) >= 12
    assert resident_bytes < MAX_RESIDENT_BYTES


def _ask(url: str, model: str, prompt: str) -> str:
    response = httpx.post(
        f"{url}/v1/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 24},
        timeout=120,
    )
    response.raise_for_status()
    assert response.json()["model"] == model != MODEL_NAME
    text: str = response.json()["choices"][0]["message"]["content"]
    return text
