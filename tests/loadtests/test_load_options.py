"""The command line and the plan made from it."""

import pytest

from loadtests.common.errors import LoadTestError
from loadtests.load.loopback import loopback_url
from loadtests.load.options import parse
from loadtests.load.plan import measured_requests, plan_runs, warmup_requests
from loadtests.load.settings import Closed, Open, Server

URLS = ["--url", "a=http://127.0.0.1:8000", "--url", "b=http://[::1]:8001/"]
TASKS = ["x", "y", "z"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "localhost", "[::1]"])
def test_loopback_is_allowed(host):
    assert loopback_url(f"http://{host}:8000/") == f"http://{host}:8000"


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:8000",
        "http://0.0.0.0:8000",
        "http://example.org",
        "http://localhost.example.org",
        "http://127.0.0.1@example.org",
        "http://127.0.0.1.example.org:8000",
        "ftp://127.0.0.1",
        "127.0.0.1:8000",
        "",
    ],
)
def test_anything_else_is_refused(url):
    with pytest.raises(ValueError, match=r"refused|not a URL"):
        loopback_url(url)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--url", "a=http://example.org"],
        [*URLS, "--url", "a=http://127.0.0.1:9"],
        [*URLS, "--concurrency", "8,8"],
        [*URLS, "--concurrency", "0"],
        [*URLS, "--rate", "nan"],
        [*URLS, "--vocab", "9-3"],
        [*URLS, "--warmup", "-1"],
        [*URLS, "--tasks", "all", "--scenario", "0"],
        [*URLS, "--distinct", "2", "--scenario", "1"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(arguments)
    assert exit_info.value.code == 2


def test_the_command_line_is_read():
    settings = parse([*URLS, "--concurrency", "1,8", "--rate", "2.5", "--requests", "9", "--duration", "7"])
    assert settings.servers == (Server("a", "http://127.0.0.1:8000"), Server("b", "http://[::1]:8001"))
    assert settings.loads == (Closed(1, 9), Closed(8, 9), Open(2.5, 7.0))
    assert (settings.scenarios, settings.vocab) == ((0,), (1000, 40000))
    assert parse([*URLS, "--tasks", "all"]).scenarios is None
    assert parse(["--url", "http://localhost:80/"]).servers[0].name == "localhost:80"


def _plan(*arguments: str):
    settings = parse([*URLS, "--tasks", "all", "--prompt-tokens", "5", *arguments])
    return settings, plan_runs(settings, TASKS, {"a": "base-a", "b": "base-b"})


def test_servers_and_scenarios_alternate_and_each_round_begins_with_the_next():
    _, runs = _plan("--scenario", "bare", "--scenario", "2", "--rounds", "2")
    order = [(run.round_number, run.scenario, run.server.name) for run in runs]
    assert order == [
        *[(1, "bare", "a"), (1, "bare", "b"), (1, "2 tasks", "a"), (1, "2 tasks", "b")],
        *[(2, "bare", "b"), (2, "2 tasks", "a"), (2, "2 tasks", "b"), (2, "bare", "a")],
    ]
    assert [run.names for run in runs[:4]] == [("base-a",), ("base-b",), ("x", "y"), ("x", "y")]


def test_servers_get_the_same_work_and_nothing_else_repeats():
    settings, runs = _plan("--scenario", "1", "--scenario", "2", "--rounds", "2", "--rate", "9", "--choice", "zipf")
    work: dict[str, set[bytes]] = {}
    for run in runs:
        bodies = {request.body for request in [*measured_requests(run, settings), *warmup_requests(run, settings)]}
        assert len(bodies) == run.n_requests + settings.n_warmup
        assert work.setdefault(f"{run.round_number} {run.scenario}", bodies) == bodies
    assert len(set().union(*work.values())) == sum(len(bodies) for bodies in work.values())
    assert runs[0].arrivals_s != runs[-1].arrivals_s


def test_impossible_plans_are_refused():
    with pytest.raises(LoadTestError, match="needs 4 tasks"):
        _plan("--scenario", "4")
    with pytest.raises(LoadTestError, match="no request arrives"):
        _plan("--rate", "1e-9")
