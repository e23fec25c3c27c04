"""onebasis-client reconcile, by typer's runner against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from onebasis_client.access import Scope
from tests.api.server import RunningServer
from tests.api.test_auth import create_key
from tests.client.conftest import url_of
from tests.client.flaky import answer, flaky_server, refusal
from tests.client.test_access import closed
from tests.client.test_cli import done, failed, run
from tests.client.test_retries import TASK

__all__ = ["closed", "run"]

NAMES = ("from-file", "from-other-file")


@pytest.fixture
def folder(server: RunningServer, tmp_path: Path) -> Iterator[Path]:
    """Two coefficient files and one that is none; the tasks are gone afterwards."""
    for seed, name in enumerate(NAMES, start=40):
        (tmp_path / f"{name}.coef.safetensors").write_bytes(server.model.core_file(seed))
    (tmp_path / "notes.txt").write_text("not for the registry")
    yield tmp_path
    for name in NAMES:
        server.client.delete(f"/v1/tasks/{name}")


def card(server, name):
    return server.client.get(f"/v1/tasks/{name}").json()


def test_files_become_tasks_once(run, server, folder):
    assert done(run("reconcile", str(folder))) == "from-file: registered\nfrom-other-file: registered\n"
    assert done(run("reconcile", str(folder))) == "from-file: unchanged\nfrom-other-file: unchanged\n"
    assert [card(server, name)["generation"] for name in NAMES] == [1, 1]
    assert card(server, "from-file")["metadata"] == {"reconciled_by": "reconcile"}
    (folder / "from-file.coef.safetensors").write_bytes(server.model.core_file(50))
    assert done(run("reconcile", str(folder))) == "from-file: registered\nfrom-other-file: unchanged\n"
    assert card(server, "from-file")["generation"] == 2


def test_a_bad_file_is_told_and_stops_no_other(run, server, folder):
    (folder / "a-broken.coef.safetensors").write_bytes(b"nonsense")
    (folder / "b-unreadable.coef.safetensors").symlink_to(folder / "nothing")
    result = run("reconcile", str(folder))
    assert result.exit_code == 1
    assert result.stdout == "from-file: registered\nfrom-other-file: registered\n"
    assert "a-broken: failed: " in result.stderr and "[not_safetensors]" in result.stderr
    assert "b-unreadable: failed: " in result.stderr


def test_pruning_deletes_what_this_owner_registered_and_nothing_else(run, server, folder):
    done(run("reconcile", str(folder), "--owner", "release-a"))
    (folder / "from-other-file.coef.safetensors").unlink()
    assert done(run("reconcile", str(folder), "--owner", "release-b", "--prune")).endswith("from-file: registered\n")
    assert server.client.get("/v1/tasks/from-other-file").status_code == 200
    shown = done(run("--json", "reconcile", str(folder), "--owner", "release-a", "--prune")).splitlines()
    assert [(line["task"], line["state"]) for line in map(json.loads, shown)] == [
        ("from-file", "registered"),  # its owner is noted anew
        ("from-other-file", "deleted"),
    ]
    assert server.client.get("/v1/tasks/from-other-file").status_code == 404
    assert server.client.get("/v1/tasks/alpha").status_code == 200


def test_a_tenant_prunes_its_own_tasks_and_the_operator_the_shared_ones(run, closed, folder):
    def reconcile(tenant, *options):
        key = create_key(closed, {Scope.REGISTER}, tenant=tenant)[1]
        shown = run("reconcile", str(folder), *options, ONEBASIS_URL=url_of(closed), ONEBASIS_API_KEY=key)
        return done(shown).splitlines()

    reconcile(None)
    reconcile("acme")
    (folder / "from-other-file.coef.safetensors").rename(folder / "moved.coef.safetensors")
    moved = ["from-file: unchanged", "moved: registered", "from-other-file: deleted"]
    assert reconcile("acme", "--prune") == moved
    assert reconcile("acme", "--prune") == ["from-file: unchanged", "moved: unchanged"], "the shared one is not its own"
    assert reconcile(None, "--prune") == moved


def test_when_nothing_can_be_registered_nothing_is_pruned(run, server, folder):
    done(run("reconcile", str(folder)))
    (folder / "from-file.coef.safetensors").unlink()
    (folder / "from-other-file.coef.safetensors").write_bytes(b"nonsense")
    failed(run("reconcile", str(folder), "--prune"), 1, "[not_safetensors]")
    assert server.client.get("/v1/tasks/from-file").status_code == 200


def test_a_server_that_is_not_there_ends_it_at_the_first_file(run, folder):
    result = run("reconcile", str(folder), ONEBASIS_URL="http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.count("can't connect") == 1


BUSY = refusal(429, "queue_full", Retry_After="3600")


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (BUSY, BUSY, 3),
        (refusal(500, "internal"), BUSY, 4),
        (BUSY, refusal(400, "not_safetensors"), 1),
        (answer(200, b"<html>"), refusal(400, "not_safetensors"), 1),
    ],
)
def test_what_trying_later_does_not_mend_decides_on_the_exit_code(run, folder, first, second, code):
    with flaky_server(first, second) as flaky:
        result = run("--json", "reconcile", str(folder), ONEBASIS_URL=flaky.url)
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == ["failed", "failed"]
    assert result.exit_code == code


def test_what_another_run_has_pruned_meanwhile_is_deleted(run, folder):
    gone = TASK | {"id": "gone", "metadata": {"reconciled_by": "reconcile"}}
    page = answer(200, {"data": [gone], "last_id": "gone", "has_more": False})
    stored = answer(200, TASK)
    with flaky_server(stored, stored, page, refusal(404, "task_not_found")) as flaky:
        shown = done(run("reconcile", str(folder), "--prune", ONEBASIS_URL=flaky.url))
    assert shown.splitlines()[-1] == "gone: deleted"


def test_a_message_is_shown_letter_by_letter(run, tmp_path):
    (tmp_path / ":100:").mkdir()
    failed(run("reconcile", str(tmp_path / ":100:")), 2, "/:100: has no")


def test_an_empty_folder_prunes_nothing(run, server, folder, tmp_path_factory):
    done(run("reconcile", str(folder)))
    failed(run("reconcile", str(tmp_path_factory.mktemp("empty")), "--prune"), 2, "has no *.coef.safetensors")
    assert server.client.get("/v1/tasks/from-file").status_code == 200
