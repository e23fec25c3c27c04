"""The script of `helm test`, against a running server."""

import os
import subprocess
import sys

from tests.deploy.rendering import CHART


def smoke_test(url):
    script = CHART / "files" / "smoke_test.py"
    environment = {**os.environ, "ONEBASIS_URL": url}
    return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)


def test_it_passes_and_leaves_nothing_behind(running_server):
    before = {task["id"] for task in running_server.client.get("/v1/tasks").json()["data"]}
    done = smoke_test(f"http://127.0.0.1:{running_server.port}")
    assert done.returncode == 0, done.stderr
    assert {task["id"] for task in running_server.client.get("/v1/tasks").json()["data"]} == before
    assert running_server.metric("onebasis_task_requests_total", task="plural", outcome="length") == 1


def test_it_fails_where_there_is_no_server():
    assert smoke_test("http://127.0.0.1:1").returncode != 0
