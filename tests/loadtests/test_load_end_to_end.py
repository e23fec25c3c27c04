"""The whole program against a server on a loopback port."""

import json

import pytest

from loadtests.__main__ import main

SMALL = ["--prompt-tokens", "7", "--output-tokens", "5", "--vocab", "10-900", "--warmup", "1"]


def test_servers_scenarios_and_levels_in_one_run(serve, tmp_path, capsys):
    one, two = serve(), serve()
    file = tmp_path / "run.json"
    arguments = ["--url", f"one={one.url}", "--url", f"two={two.url}", "--tasks", "all", "--json", str(file)]
    arguments += ["--scenario", "bare", "--scenario", "12", "--scenario", "250", "--concurrency", "1,4"]
    assert main([*arguments, *SMALL, "--requests", "6", "--rounds", "2"]) == 0
    saved = json.loads(file.read_text())
    assert len(saved["rounds"]) == 2 * 3 * 2 * 2 and len(saved["table"]) == 2 * 3 * 2
    assert all(part["n_requests"] == 6 and part["n_errors"] == 0 for part in saved["rounds"])
    assert all(part["itl_ms"]["n"] == 6 * 4 and part["events_per_token"] == 1 for part in saved["rounds"])
    assert saved["command"].startswith("python -m loadtests --url one=http://127.0.0.1:")
    assert saved["settings"]["seed"] == 0 and saved["machine"]["n_cores"] > 0
    assert len(one.seen) == 2 * 3 * 2 * (6 + 1)
    assert sorted(map(str, one.seen)) == sorted(map(str, two.seen)), "both servers get the same work"
    assert {body["model"] for body in one.seen} == {"tiny", *(f"task-{number:03}" for number in range(6))}
    body = one.seen[0]
    assert body["ignore_eos"] is True and body["stream_options"] == {"include_usage": True}
    assert "one, 12 tasks, 1 client, round 1: requests named 6 of the 12 tasks" in capsys.readouterr().out
    assert main(["table", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 12 and lines[0].startswith("| server | scenario | load | output tokens/s |")
    assert lines[3].startswith("| two | bare | 1 client |")


def test_times_are_those_of_the_server(serve, tmp_path):
    server = serve(first_s=0.08, gap_s=0.03)
    file = tmp_path / "run.json"
    assert main(["--url", server.url, *SMALL, "--requests", "3", "--json", str(file)]) == 0
    [result] = json.loads(file.read_text())["rounds"]
    assert 79 < result["ttft_ms"]["p50"] < 400
    assert 25 < result["itl_ms"]["p50"] < 200
    assert result["latency_ms"]["p50"] > 79 + 4 * 29


def test_an_open_loop_sees_the_queue(serve, tmp_path):
    server = serve(first_s=0.05, one_at_a_time=True)
    file = tmp_path / "run.json"
    assert main(["--url", server.url, *SMALL, "--rate", "60", "--duration", "0.5", "--json", str(file)]) == 0
    [result] = json.loads(file.read_text())["rounds"]
    assert result["n_requests"] > 15
    assert result["ttft_ms"]["max"] > 5 * 50, "the last to arrive waits for those before it"
    assert result["send_lag_ms"]["p50"] < 200, "arrivals do not wait for answers"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("a token short", "needed (7, 5), found (7, 4)"),
        ("a prompt token more", "needed (7, 5), found (8, 5)"),
        ("no usage", "usage: needed an object"),
        ("cut", "without [DONE]"),
        ("error event", "out of blocks"),
        ("not a chunk", "not a completion chunk"),
        ("status", "HTTP 503: no room"),
    ],
)
def test_a_fault_of_the_server_is_an_error(serve, tmp_path, capsys, fault, message):
    server = serve(fault=fault)
    file = tmp_path / "run.json"
    assert main(["--url", server.url, *SMALL, "--requests", "2", "--json", str(file)]) == 1
    assert message in capsys.readouterr().out
    [result] = json.loads(file.read_text())["rounds"]
    assert result["n_errors"] == 3, "two measured requests and one to warm up"
    assert result["output_tokens_per_s"] == 0 and result["ttft_ms"] is None


def test_a_slow_answer_is_an_error(serve, capsys):
    server = serve(first_s=5.0)
    assert main(["--url", server.url, *SMALL, "--warmup", "0", "--requests", "1", "--timeout", "0.1"]) == 1
    assert "no complete answer within 0.1 s" in capsys.readouterr().out


def test_what_cannot_be_run_says_why(tmp_path, capsys):
    url = ["--url", "http://127.0.0.1:1"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    for arguments, message in [
        ([*url], "is the server running?"),
        ([*url, "--json", str(tmp_path / "none" / "run.json")], "no folder"),
        (["table", str(wrong)], "not a file written by --json"),
        (["table", str(tmp_path / "none.json")], "No such file"),
    ]:
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
