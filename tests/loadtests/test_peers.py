"""The peers get the same load in turns, each in its own dialect and only the rows that are its."""

import json

import pytest

from loadtests.peers.__main__ import main
from tests.api.server import RunningServer
from tests.loadtests.conftest import subject_options

pytestmark = pytest.mark.usefixtures("small_products")

SMALL = ["--prompt-tokens", "7", "--output-tokens", "5", "--vocab", "10-900", "--warmup", "0", "--requests", "4"]
SMALL += ["--concurrency", "2", "--rounds", "2", "--adapters", "3"]


def fake_peft(folder, answer):
    """An environment whose Python says what PEFT's process would."""
    python = folder / "v" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho ready\nwhile read job; do echo '{answer}'; done\n")
    python.chmod(0o755)
    return folder


def test_all_peers_take_turns(serve, tiny_subject, tmp_path):
    ours, vllm, vllm_lora, llama, llama_lora = (serve() for _ in range(5))
    peft = fake_peft(tmp_path, '{"wall_s": 0.5, "n_tokens": 10}')
    file = tmp_path / "peers.json"
    target = ["--onebasis", ours.url, "--vllm", vllm.url, "--vllm-lora", vllm_lora.url, "--llamacpp", llama.url]
    target += ["--llamacpp-lora", llama_lora.url, "--peft", str(peft), "--json", str(file), *subject(tiny_subject)]
    assert main([*target, *SMALL, "--registered", "5"]) == 0
    saved = json.loads(file.read_text())
    rows = [(row["server"], row["scenario"]) for row in saved["table"]]
    with_tasks = ["onebasis", "vLLM LoRA", "llama.cpp LoRA"]
    bare = ["onebasis", "vLLM", "llama.cpp"]
    many = [("onebasis", "1 task"), *((name, "3 tasks") for name in with_tasks), ("onebasis", "5 tasks")]
    assert rows == [*((name, "bare") for name in bare), *many]
    order = [(part["round_number"], part["server"]) for part in saved["rounds"]]
    assert [number for number, _ in order] == [1] * 8 + [2] * 8
    assert [batch["output_tokens_per_s"] for batch in saved["peft"]] == [20.0, 20.0]
    assert saved["limit"]["output_tokens_per_s"] > 0
    assert saved["memory_mb"].keys() == {"onebasis", "vLLM", "vLLM LoRA", "llama.cpp", "llama.cpp LoRA"}
    assert {body["model"] for body in vllm_lora.seen} == {"000", "001", "002"}
    assert {body["model"] for body in vllm.seen} == {"tiny"} and "lora" not in vllm.seen[0]
    assert all(body["lora"] == [{"id": int(body["model"]), "scale": 1.0}] for body in llama_lora.seen)
    assert all(body["lora"] == [] and body["cache_prompt"] is False for body in llama.seen)
    by_prompt = {tuple(body["prompt"]): body["model"] for body in vllm_lora.seen}
    assert by_prompt == {tuple(body["prompt"]): body["model"] for body in llama_lora.seen}, "the same work for all"


def test_an_error_of_a_peer_fails_the_run(serve, tiny_subject, capsys):
    target = ["--onebasis", serve().url, "--vllm", serve(fault="cut").url, *subject(tiny_subject)]
    assert main([*target, *SMALL]) == 1
    assert "vLLM: stream ended without [DONE]" in capsys.readouterr().out


def test_a_wrong_number_of_tokens_from_peft_fails_the_run(serve, tiny_subject, tmp_path, capsys):
    peft = fake_peft(tmp_path, '{"wall_s": 0.5, "n_tokens": 9}')
    assert main(["--onebasis", serve().url, "--peft", str(peft), *subject(tiny_subject), *SMALL]) == 1
    assert "PEFT made 9 tokens, needed 10" in capsys.readouterr().err


def test_another_machine_is_refused():
    with pytest.raises(SystemExit):
        main(["--vllm", "http://192.0.2.1:8000"])


def subject(tiny_subject):
    """Options of what our own side serves."""
    return subject_options(tiny_subject[0])


def test_our_server_on_vllm_is_given_the_tasks(serve, tiny_model, tiny_subject, tmp_path):
    """Any server of ours will do for it."""
    file = tmp_path / "peers.json"
    with RunningServer(tiny_model) as server:
        url = f"http://127.0.0.1:{server.port}"
        target = ["--onebasis", serve().url, "--onebasis-vllm", url, "--json", str(file), *subject(tiny_subject)]
        assert main([*target, *SMALL, "--registered", "5", "--vocab", "10-250"]) == 0
        listed = server.client.get("/v1/tasks").json()["data"]
    assert [card["id"] for card in listed] == ["000", "001", "002", "003", "004"]
    saved = json.loads(file.read_text())
    assert [row["scenario"] for row in saved["table"] if row["server"] == "onebasis on vLLM"] == [
        "bare",
        "1 task",
        "3 tasks",
        "5 tasks",
    ]
    assert saved["memory_mb"]["onebasis on vLLM"] > 50
