"""One envelope for every failure of every route, and one table of codes that server/docs/errors.md repeats."""

import contextlib
import importlib
import pkgutil
import re
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute

import onebasis
from onebasis.api.errors import envelope, status_of
from onebasis.core import errors
from tests.api.server import ok, refused, replace_step, wait_until
from tests.api.tiny_model import BASE_NAME

CODES = {
    "internal": 500,
    "invalid_request": 400,
    "invalid_parameter": 400,
    "unsupported_parameter": 400,
    "invalid_grammar": 400,
    "invalid_json": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
    "task_unusable": 400,
    "non_finite_output": 400,
    "task_not_found": 404,
    "version_not_found": 404,
    "route_not_found": 404,
    "method_not_allowed": 405,
    "invalid_task_name": 400,
    "reserved_task_name": 400,
    "invalid_digest": 400,
    "digest_mismatch": 400,
    "precondition_failed": 412,
    "task_already_loaded": 400,
    "body_too_large": 413,
    "request_timeout": 408,
    "no_basis": 400,
    "invalid_coefficients": 400,
    "pickle_refused": 400,
    "not_safetensors": 400,
    "truncated_file": 400,
    "invalid_metadata": 400,
    "unsupported_format_version": 400,
    "unknown_form": 400,
    "unknown_tensor": 400,
    "missing_tensor": 400,
    "wrong_dtype": 400,
    "wrong_length": 400,
    "no_mixing_cores": 400,
    "incomplete_residual": 400,
    "wrong_residual_shape": 400,
    "residual_rank_too_high": 400,
    "residual_too_large": 400,
    "wrong_prefix": 400,
    "unknown_site": 400,
    "not_finite": 400,
    "wrong_basis": 400,
    "wrong_base": 400,
    "headers_too_large": 431,
    "invalid_api_key": 401,
    "permission_denied": 403,
    "key_not_found": 404,
    "quota_exceeded": 429,
    "queue_full": 429,
    "tenant_queue_full": 429,
    "residual_memory_full": 429,
    "deadline_exceeded": 504,
    "draining": 503,
    "engine_stopped": 503,
    "store_unavailable": 503,
    "store_damaged": 500,
    "setup": None,
    "invalid_basis": None,
    "invalid_store": None,
    "invalid_backup": None,
    "store_not_empty": None,
    "invalid_model": None,
    "invalid_file": None,
    "invalid_merge": None,
    "invalid_report": None,
    "invalid_adapter": None,
    "unsupported_adapter": None,
    "low_fidelity": None,
    "invalid_data": None,
    "invalid_key_file": None,
    "unsupported_vllm": None,
}
"""Clients depend on these: a code may be added, never changed or given another status. None: not on HTTP."""

ABSTRACT = {errors.CapacityError}
DOCUMENT = Path(__file__).parents[2] / "server" / "docs" / "errors.md"
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")


def tree(root=errors.ServeError):
    """All classes of the tree, wherever in the package they are defined."""
    for module in pkgutil.walk_packages(onebasis.__path__, "onebasis."):
        if module.name == "onebasis.storage.migrations.env":
            continue  # a script that alembic runs
        with contextlib.suppress(ModuleNotFoundError):  # an optional dependency
            importlib.import_module(module.name)
    return {root} | {found for child in root.__subclasses__() for found in tree(child)}


def test_every_error_has_a_stable_code_of_its_own():
    classes = tree() - ABSTRACT
    without = [cls.__name__ for cls in classes if "code" not in vars(cls)]
    assert not without, "these share their parent's code"
    codes = [cls.code for cls in classes]
    assert sorted(codes) == sorted(CODES), "unique, and exactly the ones that clients know"


def test_every_error_has_its_status():
    found = {
        cls.code: None if issubclass(cls, errors.SetupError) else status_of(cls.__new__(cls))
        for cls in tree() - ABSTRACT
    }
    assert found == CODES


def test_the_document_names_every_code_with_its_status_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| ([^|]+) \| ([^|]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert {code: None if status == "-" else int(status) for code, status, _, _ in rows} == CODES
    assert len(rows) == len(CODES)


@pytest.mark.parametrize("code", [code for code, status in CODES.items() if status is not None])
def test_every_code_that_a_client_can_meet_is_met_in_a_test(code):
    tests = [path for path in Path(__file__).parents[1].rglob("test_*.py") if path.name != Path(__file__).name]
    here = Path(__file__).read_text().split("DOCUMENT =", 1)[1]
    cls = next(cls.__name__ for cls in tree() if cls.code == code)
    assert any(f'"{code}"' in text or cls in text for text in (here, *(path.read_text() for path in tests)))


def test_a_stranger_s_exception_shows_nothing_of_itself():
    shown = envelope(RuntimeError("secret path /etc/passwd"))
    assert "secret" not in str(shown)
    assert shown["error"]["code"] == "internal"


def routes(app: FastAPI) -> dict[str, set[str]]:
    """Every path of the application, with its methods."""
    found: dict[str, set[str]] = {}

    def walk(members: list[BaseRoute]) -> None:
        for route in members:
            included = getattr(route, "original_router", None)
            if included is not None:
                walk(included.routes)
            else:
                found.setdefault(route.path, set()).update(route.methods)

    walk(app.routes)
    return found


def test_the_walk_finds_the_routes(server):
    found = routes(server.parts.app)
    assert found["/v1/tasks/{name}"] == {"PUT", "GET", "HEAD", "DELETE"}
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/metrics", "/health/live"} <= found.keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_route_answers_every_method_with_success_or_the_envelope(server, method):
    for path, allowed in routes(server.parts.app).items():
        for name in ("no-such-task", "a%20b", "%00", "..%2f.."):
            url = re.sub(r"{\w+(:path)?}", name, path)
            for content in (b"", b"{", b"[]", b"\xff" * 100):
                headers = {"Content-Type": "application/json", "If-Match": "nonsense", "X-Request-Id": "probe"}
                response = server.client.request(method, url, content=content, headers=headers)
                check(response, method)
                if method not in allowed and "%2f" not in url:
                    assert response.status_code == 405, (method, url)
                    assert method == "HEAD" or response.json()["error"]["code"] == "method_not_allowed"
                    assert response.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v2/models", "/v1/completions/", "/v1//models", "/%00", "/é", "/v1/tasks/"]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_path_that_does_not_exist_is_404(server, method, path):
    response = server.client.request(method, path)
    assert response.status_code == 404
    check(response, method)


def check(response: httpx.Response, method: str) -> None:
    """Success, or a failure with the one body; never a bug."""
    where = f"{method} {response.request.url}"
    assert response.status_code < 500, where
    assert response.headers["x-request-id"], where
    if not response.is_success and method != "HEAD":
        error = response.json()["error"]
        refused(response, CODES[error["code"]], error["code"], error["param"])


def test_a_body_over_the_cap_is_413_on_every_route_that_reads_one(server):
    content = b" " * (server.config.max_body_bytes + 1)
    for path, method in (("completions", "POST"), ("chat/completions", "POST"), ("tasks/big", "PUT")):
        headers = {"Content-Type": "application/json"}
        declared = server.client.request(method, f"/v1/{path}", content=content, headers=headers)
        message = refused(declared, 413, "body_too_large")
        assert str(server.config.max_body_bytes) in message
        assert declared.headers["connection"] == "close"
        counted = server.client.request(method, f"/v1/{path}", content=iter([content]), headers=headers)
        refused(counted, 413, "body_too_large")
        assert counted.headers["connection"] == "close"


def test_a_body_at_the_cap_is_read(server):
    limit = server.config.max_body_bytes
    content = f'{{"model": "{BASE_NAME}", "prompt": "a", "max_tokens": 1}}'.encode().ljust(limit)
    headers = {"Content-Type": "application/json"}
    assert server.client.post("/v1/completions", content=content, headers=headers).status_code == 200


def test_a_bug_is_500_with_the_envelope_and_the_request_s_id(server, monkeypatch, caplog):
    def fails(*_: object) -> None:
        raise RuntimeError("secret")

    registry = server.parts.app.state.services.registry
    monkeypatch.setattr(registry, "page", fails)
    before = server.metric("onebasis_http_requests_total", route="/v1/tasks", method="GET", status="500")
    for _ in range(2):  # the connection stays usable
        response = server.client.get("/v1/tasks", headers={"X-Request-Id": "mine"})
        assert "secret" not in refused(response, 500, "internal")
        assert response.headers["x-request-id"] == "mine"
    assert server.metric("onebasis_http_requests_total", route="/v1/tasks", method="GET", status="500") == before + 2
    bugs = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [bug.exc_info[1].args for bug in bugs] == [("secret",), ("secret",)], "each logged once"


def test_a_failure_in_the_engine_is_500_and_the_next_request_works(server, monkeypatch, step):
    before = server.text(BASE_NAME)
    with monkeypatch.context() as patch:
        replace_step(patch, step, lambda *_: 1 / 0)
        refused(server.post("/v1/completions", prompt="a"), 500, "internal")
        (event,) = server.stream("/v1/completions", prompt="a")
        assert event["error"]["code"] == "internal"
        assert "ZeroDivision" not in str(event)
    assert server.text(BASE_NAME) == before


def test_a_store_that_fails_is_503_with_retry_after(start_server, tiny):
    server = start_server()
    ok(server.put_task("task", tiny.core_file(0)))
    before = server.text("task")
    with server.parts.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE task_versions")
    response = server.put_task("task", tiny.core_file(1))
    refused(response, 503, "store_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert server.text("task") == before, "what is in memory serves on"


@pytest.mark.parametrize("found", ["abc", "a" * 128, "0f8fad5b-d9cb-469f-a165-70867728950e", "a b;c=d"])
def test_a_plain_request_id_comes_back(server, found):
    for path in ("/health", "/nope", "/v1/models"):
        assert server.client.get(path, headers={"X-Request-Id": found}).headers["x-request-id"] == found


@pytest.mark.parametrize("found", [b"", b"a" * 129, b"\xe9", b"a\x7fb"])
def test_any_other_request_id_is_replaced(server, found):
    response = server.client.get("/health", headers={b"X-Request-Id": found})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


def test_request_ids_of_streams(server):
    with server.open_stream("/v1/completions", prompt="a") as response:
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
        response.read()
    wait_until(server.is_idle, "the stream has not ended")
