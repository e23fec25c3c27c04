"""No key, no hash of one and no password in anything that a server process prints, whatever happens to it."""

import json
import socket

import httpx
import pytest
from sqlalchemy import make_url

from onebasis.demo.server_process import ServerProcess
from onebasis.identity.caller import Scope
from onebasis.identity.key_store import KeyStore
from onebasis.identity.keys import hash_key
from onebasis.storage.database import Database
from tests.api.server import refused
from tests.api.test_auth import OPERATOR
from tests.api.tiny_model import BASE_NAME

pytestmark = pytest.mark.native_only(
    "processes of their own, which take half a minute to start; tests/vllm/test_serve.py has one"
)

PASSWORD = "hunter2-of-the-store"
FILE_KEY = "in-the-file-" + "f" * 40


@pytest.mark.parametrize("log_json", [True, False])
def test_a_server_at_debug_level_tells_no_secret(tiny, tmp_path, new_postgres_url, log_json):
    store = make_url(new_postgres_url()).set(password=PASSWORD).render_as_string(hide_password=False)
    database = Database(store)
    admin = KeyStore(database).create(OPERATOR, label="admin", scopes=frozenset(Scope))[1]
    database.close()
    (tmp_path / "keys").write_text(f"generate {FILE_KEY}\n")
    options = [
        *("--model", str(tiny.folder), "--basis", str(tiny.basis_path), "--served-model-name", BASE_NAME),
        *("--store", store, "--api-keys-file", str(tmp_path / "keys"), "--kv-cache-mib", "8", "--arena-mib", "1"),
        *("--dtype", "float32", "--threads", "1", "--log-level", "debug"),
        *(["--log-json"] if log_json else []),
    ]
    log = tmp_path / "log"
    with ServerProcess(options, port=free_port(), log=log) as server:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {admin}"}, timeout=30) as client:
            made = use(client)
        (tmp_path / "keys").write_text(f"{FILE_KEY} generate\n")
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {FILE_KEY}x"}) as client:
            refused(client.get("/v1/models"), 401, "invalid_api_key")
    told = log.read_text()
    lines = [line for line in told.splitlines() if " /v1/" in line]
    assert len(lines) > 5, "the log tells of the requests"
    if log_json:
        assert all(json.loads(line)["key_id"].startswith("key-") for line in lines if " 200" in line)
    for secret in (admin, made, FILE_KEY, PASSWORD, *map(hash_key, (admin, made, FILE_KEY))):
        assert secret not in told
        assert secret[5:25] not in told


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def use(client: httpx.Client) -> str:
    """Requests that go well and that go wrong, some with a key where none belongs. Returns a key that was made."""
    made: str = client.post("/v1/keys", json={"label": "x", "scopes": ["generate"]}).json()["key"]
    assert client.get("/v1/models").status_code == 200
    assert client.post("/v1/completions", json={"model": BASE_NAME, "prompt": "a"}).status_code == 200
    client.post("/v1/completions", json={"model": made, "prompt": "a", "user": made})
    client.post("/v1/completions", json={"model": BASE_NAME, "prompt": "a", "user": made})
    client.put("/v1/tasks/x", content=made.encode())
    refused(client.delete(f"/v1/keys/{made}"), 404, "key_not_found")
    client.get("/v1/tasks", params={"after": made, "api_key": made})
    client.get(f"/v1/{made}")
    client.get("/v1/models", headers={"Authorization": f"Basic {made}"})
    return made
