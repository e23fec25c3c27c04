"""The onebasis-client command, run by typer's runner against a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from onebasis.core.ids import digest_of
from onebasis_client.cli.app import app
from tests.api.server import TASKS, RunningServer
from tests.client.conftest import url_of
from tests.client.flaky import answer, flaky_server, refusal

Run = Callable[..., Result]


@pytest.fixture
def run(server: RunningServer) -> Run:
    """Runs the command; the environment says where the server is, a width keeps usage messages whole."""
    environment = {"ONEBASIS_URL": url_of(server), "COLUMNS": "160", "TERM": "dumb"}

    def invoke(*args: str, stdin: str | None = None, **env: str) -> Result:
        return CliRunner().invoke(app, args, input=stdin, env=environment | env)

    return invoke


@pytest.fixture
def file(server: RunningServer, tmp_path: Path) -> Iterator[Path]:
    """A coefficient file; the task `pushed` is gone afterwards."""
    path = tmp_path / "a.coef.safetensors"
    path.write_bytes(server.model.core_file(31))
    yield path
    server.client.delete("/v1/tasks/pushed")


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(result: Result, code: int, complaint: str) -> None:
    assert result.exit_code == code, result.output
    assert complaint in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_push_registers_and_tells_the_digest(run, server, file):
    digest = digest_of(file.read_bytes())
    assert done(run("push", str(file), "--name", "pushed")) == f"pushed: registered, {digest}\n"
    assert done(run("push", str(file), "--name", "pushed")) == f"pushed: unchanged, {digest}\n"
    assert server.client.get("/v1/tasks/pushed/content").content == file.read_bytes()


def test_push_notes_metadata(run, server, file):
    noted = ("--metadata", "run=7", "--metadata", "why=a=b")
    done(run("push", str(file), "--name", "pushed", *noted))
    assert server.client.get("/v1/tasks/pushed").json()["metadata"] == {"run": "7", "why": "a=b"}
    done(run("push", str(file), "--name", "pushed"))
    assert server.client.get("/v1/tasks/pushed").json()["metadata"] == {"run": "7", "why": "a=b"}
    for wrong in (["run"], ["=7"], ["run=7", "run=8"]):
        given = [word for item in wrong for word in ("--metadata", item)]
        failed(run("push", str(file), "--name", "pushed", *given), 2, "KEY=VALUE")


def test_blend_stores_a_weighted_sum(run, server, file):
    stored = done(run("blend", "alpha=0.5", "beta=-0.25", "--name", "pushed", "--metadata", "why=test", "--if-absent"))
    card = server.client.get("/v1/tasks/pushed").json()
    assert stored == f"pushed: registered, {card['digest']}\n"
    assert card["metadata"] == {"why": "test"}
    blend = [{"task": "alpha", "weight": 0.5}, {"task": "beta", "weight": -0.25}]
    assert server.text("pushed") == server.complete(blend=blend)["choices"][0]["text"]
    failed(run("blend", "alpha=1", "--name", "pushed", "--if-absent"), 1, "[precondition_failed]")
    failed(run("blend", "alpha=much", "--name", "pushed"), 2, "number")
    failed(run("blend", "alpha", "--name", "pushed"), 2, "KEY=VALUE")


def test_push_respects_its_conditions(run, file):
    done(run("push", str(file), "--name", "pushed", "--if-absent"))
    failed(run("push", str(file), "--name", "pushed", "--if-absent"), 1, "[precondition_failed]")
    wrong = "sha256:" + "0" * 64
    failed(run("push", str(file), "--name", "pushed", "--if-match", wrong), 1, "[precondition_failed]")


def test_push_of_no_coefficient_file_is_refused(run, file):
    file.write_bytes(b"nonsense")
    failed(run("push", str(file), "--name", "pushed"), 1, "[not_safetensors]")


def test_push_of_a_file_that_is_not_there_is_wrong_usage(run, tmp_path):
    failed(run("push", str(tmp_path / "none"), "--name", "pushed"), 2, "does not exist")


def test_results_as_json(run, server, file):
    pushed = json.loads(done(run("--json", "push", str(file), "--name", "pushed")))
    assert (pushed["created"], pushed["task"]["id"]) == (True, "pushed")
    listed = json.loads(done(run("--json", "list")))
    assert {*TASKS, "pushed"} <= {task["id"] for task in listed}
    shown = json.loads(done(run("--json", "show", "pushed")))
    assert shown == pushed["task"] == next(task for task in listed if task["id"] == "pushed")
    answer = json.loads(done(run("--json", "chat", "--task", "pushed", "the cat", "--max-tokens", "3")))
    assert answer["onebasis"]["digest"] == shown["digest"]
    assert json.loads(done(run("--json", "rm", "pushed"))) == {"id": "pushed", "deleted": True}


def test_list_is_a_table_of_all_tasks(run, server):
    rows = done(run("list")).splitlines()
    for name in TASKS:
        (row,) = [row for row in rows if name in row]
        assert server.client.get(f"/v1/tasks/{name}").json()["digest"][:19] in row
        assert "ready" in row


def test_show_tells_everything_of_a_task(run, server):
    shown = done(run("show", "alpha"))
    assert server.client.get("/v1/tasks/alpha").json()["digest"] in shown
    assert "generation" in shown


def test_a_row_is_one_line_in_a_pipe_however_narrow_the_terminal(run, server, file):
    done(run("push", str(file), "--name", "pushed", "--metadata", "why=" + "long " * 30))
    (row,) = [row for row in done(run("versions", "pushed", COLUMNS="40")).splitlines() if "long " * 30 in row]
    digest = server.client.get("/v1/tasks/pushed").json()["digest"]
    assert digest in row
    assert f"digest      {digest}" in done(run("show", "pushed", COLUMNS="40"))


def test_versions_and_rollback(run, server, file):
    old = digest_of(file.read_bytes())
    done(run("push", str(file), "--name", "pushed"))
    file.write_bytes(server.model.core_file(32))
    new = digest_of(file.read_bytes())
    done(run("push", str(file), "--name", "pushed"))
    rows = done(run("versions", "pushed")).splitlines()
    assert [digest for row in rows for digest in (old, new) if digest in row] == [new, old]
    assert [version["digest"] for version in json.loads(done(run("--json", "versions", "pushed")))] == [new, old]
    failed(run("rollback", "pushed", old, "--if-match", old), 1, "[precondition_failed]")
    assert done(run("rollback", "pushed", old, "--if-match", new)) == f"pushed: rolled back, {old}\n"
    assert done(run("rollback", "pushed", old)) == f"pushed: unchanged, {old}\n"
    assert server.client.get("/v1/tasks/pushed").json()["digest"] == old


def test_rm_deletes_and_tells_of_the_first_that_is_not_there(run, server, file):
    done(run("push", str(file), "--name", "pushed"))
    result = run("rm", "pushed", "nothing")
    assert (result.exit_code, result.stdout) == (1, "pushed: deleted\n")
    assert "[task_not_found]" in result.stderr
    assert server.client.get("/v1/tasks/pushed").status_code == 404


def test_chat_streams_the_answer_of_a_task(run, server):
    shown = done(run("chat", "--task", "beta", "the cat", "--max-tokens", "8", "--temperature", "0"))
    body = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 8, "temperature": 0}
    expected = server.post("/v1/chat/completions", model="beta", **body).json()["choices"][0]["message"]["content"]
    assert shown == expected + "\n"


def test_chat_without_a_task_asks_the_base_and_takes_turns_from_stdin(run, server):
    options = ("--system", "the mat", "--max-tokens", "6", "--temperature", "0")
    shown = json.loads(
        "[" + done(run("--json", "chat", *options, stdin="the cat\n\nthe house\n")).replace("\n{", ",{") + "]"
    )
    messages = [{"role": "system", "content": "the mat"}]
    for turn, found in zip(["the cat", "the house"], shown, strict=True):
        messages.append({"role": "user", "content": turn})
        body = {"messages": messages, "max_tokens": 6, "temperature": 0}
        expected = server.post("/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
        assert found["choices"][0]["message"]["content"] == expected
        assert found["onebasis"]["task"] is None
        messages.append({"role": "assistant", "content": expected})


def test_wait_for_a_server_that_runs(run):
    assert done(run("wait")) == "ready\n"


def test_a_server_that_can_not_be_reached_is_exit_code_3(run):
    failed(
        run("wait", "--timeout-s", "0.1", ONEBASIS_URL="http://127.0.0.1:1"), 3, "can't connect to http://127.0.0.1:1"
    )


@pytest.mark.parametrize(("status", "code"), [(504, "deadline_exceeded"), (429, "quota_exceeded")])
def test_a_server_that_has_no_time_or_room_now_is_exit_code_3(run, status, code):
    with flaky_server(refusal(status, code, Retry_After="3600")) as flaky:
        failed(run("show", "alpha", ONEBASIS_URL=flaky.url), 3, f"[{code}]")


def test_a_server_that_fails_or_is_another_service_is_exit_code_4(run):
    for reply in (refusal(500, "internal"), answer(200, b"<html>hello</html>")):
        with flaky_server(reply) as flaky:
            failed(run("show", "alpha", ONEBASIS_URL=flaky.url), 4, "onebasis-client: ")


def test_the_key_comes_from_the_environment_or_an_option(run):
    with flaky_server(refusal(401, "invalid_api_key")) as flaky:
        run("--url", flaky.url, "list", ONEBASIS_API_KEY="from-environment")
        run("--url", flaky.url, "--api-key", "from-option", "list", ONEBASIS_API_KEY="from-environment")
    assert [request.headers["authorization"] for request in flaky.seen] == [
        "Bearer from-environment",
        "Bearer from-option",
    ]


@pytest.mark.parametrize("wrong", ["nonsense", "http://127.0.0.1:port"])
def test_a_wrong_url_is_wrong_usage(run, wrong):
    failed(run("list", ONEBASIS_URL=wrong), 2, "base_url")


def test_the_key_is_not_shown_in_help(run):
    assert "secret" not in run("--help", ONEBASIS_API_KEY="secret").output
