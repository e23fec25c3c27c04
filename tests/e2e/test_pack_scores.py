"""The scores in the shipped files are what a client measures over HTTP."""

import asyncio
from pathlib import Path

import pytest

from onebasis.coefficients.format import parse_coefficients
from onebasis.demo.client import register_all
from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import MODEL_NAME
from onebasis.demo.run import pack_options
from onebasis.demo.score import score_over_http
from onebasis.demo.server_process import ServerProcess
from tests.native import native_library

N_ITEMS = 64
MAX_DIFFERENCE = 3 / N_ITEMS  # bfloat16 batches of other shapes may turn a near-tie: up to three items of 64


def scores_in(pack: DemoPack, task: str) -> float:
    """What the file says."""
    scores = parse_coefficients(pack.coefficients(task).read_bytes()).provenance["scores"]
    assert scores["n"] == N_ITEMS
    return float(scores["task"])


@pytest.mark.timeout(900)
def test_scores_over_http_agree_with_the_files(
    free_port: int, model_folder: Path, pack: DemoPack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = pack_options(model_folder, pack, tmp_path / "tasks.db")
    lines = []
    with ServerProcess(options, port=free_port, log=tmp_path / "server.log") as server:
        asyncio.run(register_all(server.url, {task: pack.coefficients(task) for task in pack.tasks()}))
        for task in pack.tasks():
            written = scores_in(pack, task)
            found = asyncio.run(score_over_http(server.url, task, task, n_items=N_ITEMS))
            lines.append(f"{task}: {written:.3f} in the file, {found:.3f} over HTTP")
            assert abs(found - written) <= MAX_DIFFERENCE, lines[-1]
        base = asyncio.run(score_over_http(server.url, MODEL_NAME, "intent_a", n_items=N_ITEMS))
    assert base < 0.1, "the bare model must not know a tenant's labels"
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def test_tasks_score_alike_on_weights_of_8_bits(
    free_port: int, model_folder: Path, pack: DemoPack, tmp_path: Path
) -> None:
    native_library()
    options = [*pack_options(model_folder, pack, tmp_path / "tasks.db"), "--quantization", "int8"]
    tasks = ("intent_a", "plural", "num2words")
    with ServerProcess(options, port=free_port, log=tmp_path / "server.log") as server:
        asyncio.run(register_all(server.url, {task: pack.coefficients(task) for task in tasks}))
        for task in tasks:
            found = asyncio.run(score_over_http(server.url, task, task, n_items=N_ITEMS))
            assert abs(found - scores_in(pack, task)) <= MAX_DIFFERENCE, task
