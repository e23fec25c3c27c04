"""vLLM's routes to load adapters from the server's disk: off by default, shut in a folder."""

import os

import pytest

from tests.api.server import ok, refused

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture
def root(tmp_path, tiny):
    """Inside: a file, a file in a folder, a link to it, links and files that must not be read. Outside: a file."""
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "one.coef.safetensors").write_bytes(tiny.core_file(90))
    (root / "folder" / "two.coef.safetensors").write_bytes(tiny.core_file(91))
    (root / "inner.coef.safetensors").symlink_to(root / "folder" / "two.coef.safetensors")
    (root / "one.txt").write_bytes(tiny.core_file(90))
    (root / "dir.coef.safetensors").mkdir()
    os.mkfifo(root / "pipe.coef.safetensors")
    (tmp_path / "outside.coef.safetensors").write_bytes(tiny.core_file(90))
    (root / "link.coef.safetensors").symlink_to(tmp_path / "outside.coef.safetensors")
    (root / "up").symlink_to(tmp_path)
    (root / "circle.coef.safetensors").symlink_to(root / "circle.coef.safetensors")
    return root


@pytest.fixture
def server(start_server, root):
    return start_server(lora_root=root)


def load(server, name, path, **fields):
    return server.client.post(LOAD, json={"lora_name": name, "lora_path": str(path)} | fields)


def test_without_a_root_the_routes_do_not_exist(shared_server):
    refused(load(shared_server, "a", "one.coef.safetensors"), 404, "route_not_found")
    refused(shared_server.client.post(UNLOAD, json={"lora_name": "alpha"}), 404, "route_not_found")


def test_texts_and_statuses_are_vllms(server, tiny, root):
    loaded = load(server, "sql", root / "one.coef.safetensors")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert loaded.headers["content-type"].startswith("text/plain")
    assert server.client.get("/v1/tasks/sql/content").content == tiny.core_file(90)
    message = refused(load(server, "sql", "folder/two.coef.safetensors"), 400, "task_already_loaded", "lora_name")
    assert message.startswith("The lora adapter 'sql' has already been loaded.")
    assert load(server, "sql", "inner.coef.safetensors", load_inplace=True).status_code == 200
    assert ok(server.client.get("/v1/tasks/sql"))["generation"] == 2
    assert server.client.get("/v1/tasks/sql/content").content == tiny.core_file(91)
    gone = server.client.post(UNLOAD, json={"lora_name": "sql"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    refused(server.client.post(UNLOAD, json={"lora_name": "sql"}), 404, "task_not_found")
    refused(server.client.get("/v1/tasks/sql"), 404, "task_not_found")


@pytest.mark.parametrize(
    "path",
    [
        "../outside.coef.safetensors",
        "{root}/../outside.coef.safetensors",
        "link.coef.safetensors",
        "up/outside.coef.safetensors",
        "circle.coef.safetensors",
        "one.txt",
        "dir.coef.safetensors",
        "pipe.coef.safetensors",
        "missing.coef.safetensors",
        "/etc/passwd",
        "one.coef.safetensors\0",
        "https://example.org/one.coef.safetensors",
        ".",
        "a" * 4096,
    ],
)
def test_nothing_but_files_under_the_root_is_read_and_all_refusals_are_alike(server, root, path):
    message = refused(load(server, "bad", path.format(root=root)), 400, "invalid_parameter", "lora_path")
    assert message == "lora_path: needs a *.coef.safetensors file under the server's --lora-root"
    assert str(root) not in message


def test_a_file_that_is_no_coefficients_or_too_large_is_refused_as_an_upload_is(server, root):
    (root / "bad.coef.safetensors").write_bytes(b"rubbish!" * 10)
    refused(load(server, "bad", "bad.coef.safetensors"), 400, "not_safetensors")
    (root / "large.coef.safetensors").write_bytes(bytes(server.config.max_body_bytes + 1))
    refused(load(server, "bad", "large.coef.safetensors"), 413, "body_too_large")
    refused(load(server, "a b", "one.coef.safetensors"), 400, "invalid_task_name")
    refused(load(server, "a", "one.coef.safetensors", pinned=True), 400, "unsupported_parameter", "pinned")
