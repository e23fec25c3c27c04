"""A server that is closed and built again over the same database is the same server."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch
from sqlalchemy import text

from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.model.loader import load_base
from tests.api.server import RunningServer, ok, refused
from tests.api.tiny_model import BASE_NAME


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path / 'tasks.db'}"


def test_tasks_and_answers_survive(tiny, store):
    with RunningServer(tiny, store=store) as first:
        for name, seed in (("kept", 1), ("replaced", 2), ("replaced", 3), ("deleted", 4), ("other", 1)):
            ok(first.put_task(name, tiny.core_file(seed)))
        ok(first.client.delete("/v1/tasks/deleted"))
        cards = ok(first.client.get("/v1/tasks"))
        old = ok(first.put_task("versions", tiny.core_file(5)))["digest"]
        old_text = first.text(f"versions@{old}")
        ok(first.put_task("versions", tiny.core_file(6)))
        before = {
            name: first.complete(model=name, max_tokens=20) for name in ("kept", "replaced", "versions", BASE_NAME)
        }
    with RunningServer(tiny, store=store) as second:
        found = ok(second.client.get("/v1/tasks"))
        assert [card for card in found["data"] if card["id"] != "versions"] == cards["data"]
        assert [card["id"] for card in found["data"]] == ["kept", "other", "replaced", "versions"]
        for name, answer in before.items():
            again = second.complete(model=name, max_tokens=20)
            assert again["choices"] == answer["choices"]
            assert again["onebasis"] == answer["onebasis"]
            assert again["system_fingerprint"] == answer["system_fingerprint"]
        assert second.text(f"versions@{old}") == old_text
        assert second.client.get("/v1/tasks/kept/content").content == tiny.core_file(1)
        refused(second.client.get("/v1/tasks/deleted"), 404, "task_not_found")
        refused(second.post("/v1/completions", model="deleted", prompt="a"), 404, "model_not_found", "model")
        assert second.put_task("kept", tiny.core_file(1)).status_code == 200, "the same bytes are known"
        etag = second.client.get("/v1/tasks/replaced").headers["etag"]
        assert second.put_task("replaced", tiny.core_file(7), If_Match=etag).json()["generation"] == 3


def test_under_another_basis_tasks_are_listed_and_can_not_serve(tiny, store, tmp_path):
    with RunningServer(tiny, store=store) as first:
        ok(first.put_task("task", tiny.core_file(1)))
    base = load_base(tiny.folder, dtype=torch.float32, device=torch.device("cpu"), name=BASE_NAME)
    path = tmp_path / "other.basis.safetensors"
    other = build_basis(base, kind=BasisKind.RANDOM, k=4, seed=1, path=path, progress=lambda _site: None)
    with RunningServer(tiny, store=store, basis=path) as second:
        card = ok(second.client.get("/v1/tasks/task"))
        assert card["state"] == "unusable"
        assert tiny.basis.digest in card["reason"]
        assert other.digest in card["reason"]
        assert [card["id"] for card in ok(second.client.get("/v1/models"))["data"]] == [BASE_NAME]
        for model in ("task", f"task@{card['digest']}"):
            refused(second.post("/v1/completions", model=model, prompt="a"), 400, "task_unusable", "model")
        assert second.client.get("/v1/tasks/task/content").content == tiny.core_file(1)
        fits = tiny.core_file(1, basis=other.digest)
        assert second.put_task("task", fits).status_code == 201
        assert second.complete(model="task")["onebasis"]["basis"] == other.digest
    with RunningServer(tiny, store=store, basis=None) as third:
        assert ok(third.client.get("/v1/tasks/task"))["state"] == "unusable"
        refused(third.post("/v1/completions", model="task", prompt="a"), 400, "task_unusable", "model")
        assert third.client.delete("/v1/tasks/task").is_success


def test_the_base_s_new_name_may_be_a_task_s(tiny, store):
    """The base keeps its name; the task that has it, too, can still be read and deleted."""
    with RunningServer(tiny, store=store) as first:
        ok(first.put_task("taken", tiny.core_file(1)))
        base_text = first.text(BASE_NAME)
    with RunningServer(tiny, store=store, served_model_name="taken") as second:
        assert second.text("taken") == base_text
        assert ok(second.client.get("/v1/tasks/taken"))["state"] == "unusable"
        assert [card["id"] for card in ok(second.client.get("/v1/models"))["data"]] == ["taken"]
        assert second.client.delete("/v1/tasks/taken").is_success


def test_damage_to_one_stored_file_stops_nothing_else(tiny, store):
    with RunningServer(tiny, store=store) as first:
        ok(first.put_task("whole", tiny.core_file(1)))
        ok(first.put_task("damaged", tiny.core_file(2)))
        answer = first.text("whole")
        digest = ok(first.client.get("/v1/tasks/damaged"))["digest"]
        damaged = bytearray(tiny.core_file(2))
        damaged[-2:] = np.float16(1.5).tobytes()
        statement = text("UPDATE coefficient_files SET body = :body WHERE digest = :digest")
        with first.parts.database.writing() as connection:
            connection.execute(statement, {"body": bytes(damaged), "digest": digest})
    with RunningServer(tiny, store=store) as second:
        assert second.text("whole") == answer
        card = ok(second.client.get("/v1/tasks/damaged"))
        assert (card["state"], "damaged" in card["reason"]) == ("unusable", True)
        refused(second.post("/v1/completions", model="damaged", prompt="a"), 400, "task_unusable", "model")


def test_what_can_not_be_read_is_said_to_be_damaged_and_the_rest_serves(tiny, store):
    with RunningServer(tiny, store=store) as server:
        ok(server.put_task("whole", tiny.core_file(1)))
        answer = server.text("whole")
        with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as connection:
            (cookie,) = connection.execute("PRAGMA schema_version").fetchone()
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'coefficient_files'")
            connection.execute(f"PRAGMA schema_version = {cookie + 1}")
            connection.commit()
        refused(server.client.get("/v1/tasks/whole/content"), 500, "store_damaged")
        assert server.text("whole") == answer
