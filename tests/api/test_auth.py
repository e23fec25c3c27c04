"""Every route of the application, against every kind of key. A new route fails here until it has a row."""

import itertools
import re
import time
from typing import Any

import httpx
import pytest

from onebasis.api.auth import METRICS_PATH, OPEN_PATHS
from onebasis.identity.caller import Caller, Scope
from tests.api.server import RunningServer, ok, refused, wait_until
from tests.api.test_errors import routes

OPERATOR = Caller(key_id="test", tenant=None, scopes=frozenset(Scope))

NEEDED = {
    ("POST", "/v1/completions"): "generate",
    ("POST", "/tokenize"): "generate",
    ("POST", "/detokenize"): "generate",
    ("GET", "/tokenizer_info"): "generate",
    ("POST", "/v1/chat/completions"): "generate",
    ("GET", "/v1/models"): "any",
    ("GET", "/v1/models/{name:path}"): "any",
    ("PUT", "/v1/tasks/{name}"): "register",
    ("GET", "/v1/tasks"): "any",
    ("GET", "/v1/tasks/{name}"): "any",
    ("HEAD", "/v1/tasks/{name}"): "any",
    ("GET", "/v1/tasks/{name}/content"): "register",
    ("HEAD", "/v1/tasks/{name}/content"): "register",
    ("DELETE", "/v1/tasks/{name}"): "register",
    ("GET", "/v1/tasks/{name}/versions"): "any",
    ("POST", "/v1/tasks/{name}/rollback"): "register",
    ("POST", "/v1/tasks/{name}/blend"): "register",
    ("POST", "/v1/load_lora_adapter"): "register",
    ("POST", "/v1/unload_lora_adapter"): "register",
    ("GET", "/v1/basis"): "any",
    ("GET", "/v1/basis/content"): "any",
    ("HEAD", "/v1/basis/content"): "any",
    ("POST", "/v1/keys"): "admin",
    ("GET", "/v1/keys"): "admin",
    ("DELETE", "/v1/keys/{key_id}"): "admin",
    ("GET", "/v1/tenants/{tenant}/quota"): "admin",
    ("PUT", "/v1/tenants/{tenant}/quota"): "admin",
    ("GET", "/v1/audit"): "admin",
}
"""The scope of each route."""

OPEN = {
    "/health",
    "/health/live",
    "/health/ready",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/metrics",
}
WRONG_KEYS = ("none", "empty", "wrong", "cut", "basic", "revoked", "expired")


def create_key(server: RunningServer, scopes: set[Scope], **fields: Any) -> tuple[str, str]:
    """(id, key)"""
    store = server.parts.app.state.services.identity.keys
    key, secret = store.create(OPERATOR, label="test", scopes=frozenset(scopes), **fields)
    return key.id, secret


class Keys:
    """One key of each kind, as the value of an Authorization header."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.headers: dict[str, str] = {}
        for scope in Scope:
            self.headers[scope] = f"Bearer {create_key(server, {scope})[1]}"
        revoked_id, revoked = create_key(server, set(Scope))
        server.parts.app.state.services.identity.keys.revoke(OPERATOR, revoked_id)
        expired = create_key(server, set(Scope), expires_at=int(time.time()) + 2)[1]
        self.expires_s = time.time() + 2
        self.headers |= {
            "empty": "Bearer",
            "wrong": f"Bearer ob_{'x' * 43}",
            "cut": self.headers["admin"][:-1],
            "basic": self.headers["admin"].replace("Bearer", "Basic"),
            "revoked": f"Bearer {revoked}",
            "expired": f"Bearer {expired}",
        }

    def request(self, method: str, path: str, key: str) -> httpx.Response:
        url = re.sub(r"{\w+(:path)?}", "nothing", path)
        headers = {} if key == "none" else {"Authorization": self.headers[key]}
        content = b"" if method in ("GET", "HEAD", "DELETE") else b"{}"
        return self.server.client.request(method, url, headers=headers, content=content)


@pytest.fixture(scope="module")
def keys(tiny):
    with RunningServer(tiny, lora_root=tiny.folder) as server:
        keys = Keys(server)
        time.sleep(max(0.0, keys.expires_s - time.time()))
        yield keys


def served(server: RunningServer) -> set[tuple[str, str]]:
    return {(method, path) for path, methods in routes(server.parts.app).items() for method in methods}


def test_every_route_is_open_by_name_or_has_a_scope_here(keys):
    closed = {(method, path) for method, path in served(keys.server) if path not in OPEN}
    assert closed == NEEDED.keys()
    assert {*OPEN_PATHS, METRICS_PATH} == OPEN


@pytest.mark.parametrize("key", WRONG_KEYS)
@pytest.mark.parametrize(("method", "path"), NEEDED)
def test_without_a_valid_key_nothing_but_401(keys, method, path, key):
    response = keys.request(method, path, key)
    assert response.status_code == 401
    if method != "HEAD":
        message = refused(response, 401, "invalid_api_key")
        assert "Authorization: Bearer" in message
        assert response.json()["error"]["type"] == "authentication_error"
    challenge = response.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="onebasis"')
    assert ("invalid_token" in challenge) == (key in ("wrong", "cut", "revoked", "expired"))


@pytest.mark.parametrize("key", Scope)
@pytest.mark.parametrize(("method", "path"), NEEDED)
def test_a_key_opens_what_its_scope_says_and_no_more(keys, method, path, key):
    response = keys.request(method, path, key)
    if NEEDED[method, path] in ("any", key):
        assert response.status_code not in (401, 403)
    elif method == "HEAD":
        assert response.status_code == 403
    else:
        message = refused(response, 403, "permission_denied")
        assert f"needs a key with scope {NEEDED[method, path]}, found {key}" in message
        assert response.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_metrics_and_the_description_need_no_key(keys, path):
    assert keys.request("GET", path, "none").status_code == 200
    assert keys.request("GET", path, "wrong").status_code == 200


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/health/", "/health/live/", "/METRICS", "/metrics/x"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_what_does_not_exist_is_closed_too(keys, method, path):
    assert keys.request(method, path, "none").status_code == 401
    assert keys.request(method, path, "generate").status_code == 404


def test_a_strangers_body_is_not_read(keys):
    """The header announces a body that never comes; the answer does not wait for it."""
    with keys.server.raw() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()


def test_the_scheme_may_be_spelt_in_any_case(keys):
    headers = {"Authorization": keys.headers["generate"].replace("Bearer", "bEARER")}
    ok(keys.server.client.get("/v1/models", headers=headers))


def test_keys_are_made_listed_and_revoked_over_http(keys):
    client, admin = keys.server.client, {"Authorization": keys.headers["admin"]}
    body = {"label": "ci", "scopes": ["register", "generate"], "tenant": "acme", "expires_at": 2**37}
    response = client.post("/v1/keys", json=body, headers=admin)
    assert response.status_code == 201
    made = response.json()
    secret, key_id = made.pop("key"), made["id"]
    assert made | body | {"scopes": ["generate", "register"], "object": "key", "revoked_at": None} == made
    bearer = {"Authorization": f"Bearer {secret}"}
    ok(client.get("/v1/tasks", headers=bearer))
    listed = ok(client.get("/v1/keys", headers=admin, params={"limit": 1000}))
    assert made in listed["data"]
    assert secret not in str(listed)
    assert "key_hash" not in str(listed)
    assert ok(client.delete(f"/v1/keys/{key_id}", headers=admin)) == {
        "id": key_id,
        "object": "key.revoked",
        "revoked": True,
    }
    started_s = time.monotonic()
    wait_until(lambda: client.get("/v1/tasks", headers=bearer).status_code == 401, "still open", timeout_s=2)
    assert time.monotonic() - started_s < 2
    refused(client.delete("/v1/keys/key-none", headers=admin), 404, "key_not_found")


def test_pages_of_keys_hold_every_key_once(keys):
    admin = {"Authorization": keys.headers["admin"]}
    found, after = [], None
    for _ in itertools.count():
        params = {"limit": 2} | ({"after": after} if after else {})
        page = ok(keys.server.client.get("/v1/keys", params=params, headers=admin))
        found += [key["id"] for key in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert found == sorted(set(found))
    assert len(found) >= len(Scope) + 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": ["generate"]}, "label"),
        ({"label": "x", "scopes": []}, "scopes"),
        ({"label": "x", "scopes": ["write"]}, "scopes"),
        ({"label": "x", "scopes": ["admin"], "tenant": "acme"}, "tenant"),
        ({"label": "x", "scopes": ["generate"], "tenant": "../x"}, "tenant"),
        ({"label": "x", "scopes": ["generate"], "expires_at": 1}, "expires_at"),
        ({"label": "x", "scopes": ["generate"], "expires_at": 1_900_000_000_000}, "expires_at"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_field(keys, body, param):
    headers = {"Authorization": keys.headers["admin"]}
    refused(keys.server.client.post("/v1/keys", json=body, headers=headers), 400, "invalid_parameter", param)


def test_an_open_server_closes_with_its_first_key_on_every_replica(tiny, tmp_path):
    store = f"sqlite:///{tmp_path / 'tasks.db'}"
    with RunningServer(tiny, store=store) as first, RunningServer(tiny, store=store) as second:
        message = refused(first.client.get("/v1/keys"), 403, "permission_denied")
        assert "onebasis keys create --scope admin" in message, "nobody may close it from outside"
        ok(second.client.get("/v1/models"))
        key_id, secret = create_key(first, {Scope.GENERATE})
        bearer = {"Authorization": f"Bearer {secret}"}
        for server in (first, second):
            wait_until(lambda s=server: s.client.get("/v1/models").status_code == 401, "still open", timeout_s=2)
            ok(server.client.get("/v1/models", headers=bearer))
        first.parts.app.state.services.identity.keys.revoke(OPERATOR, key_id)
        for server in (first, second):
            wait_until(
                lambda s=server: s.client.get("/v1/models", headers=bearer).status_code == 401,
                "still valid",
                timeout_s=2,
            )


def test_require_auth_closes_a_server_that_has_no_keys(start_server):
    server = start_server(require_auth=True)
    refused(server.client.get("/v1/models"), 401, "invalid_api_key")
    assert server.client.get("/health/ready").status_code == 200


def test_a_key_file_opens_a_server_for_its_keys_alone(start_server, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"generate {'g' * 40} acme\nadmin {'a' * 40}\n")
    server = start_server(api_keys_file=path)
    refused(server.client.get("/v1/models"), 401, "invalid_api_key")
    ok(server.client.get("/v1/models", headers={"Authorization": f"Bearer {'g' * 40}"}))
    ok(server.client.get("/v1/keys", headers={"Authorization": f"Bearer {'a' * 40}"}))


def test_protected_metrics_are_for_keys_without_a_tenant(start_server, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"generate {'t' * 40} acme\ngenerate {'o' * 40}\n")
    server = start_server(api_keys_file=path, protect_metrics=True)
    refused(server.client.get("/metrics"), 401, "invalid_api_key")
    refused(server.client.get("/metrics", headers={"Authorization": f"Bearer {'t' * 40}"}), 403, "permission_denied")
    response = server.client.get("/metrics", headers={"Authorization": f"Bearer {'o' * 40}"})
    assert "onebasis_" in response.text
