"""What is refused before any route sees it: large headers, much JSON, pages of other origins."""

import pytest

from tests.api.server import RunningServer, ok, refused
from tests.api.tiny_model import BASE_NAME

PAGE = "https://app.example.org"


@pytest.fixture(scope="module")
def small(tiny, tmp_path_factory):
    with RunningServer(tiny, max_header_bytes=4096, max_json_bytes=2000, cors_origin=[PAGE]) as server:
        yield server


def test_headers_over_the_cap_are_refused_by_size(small):
    ok(small.client.get("/v1/models", headers={"X-Some": "x" * 3000}))
    message = refused(small.client.get("/v1/models", headers={"X-Some": "x" * 5000}), 431, "headers_too_large")
    assert "may have 4096 bytes, found 5" in message


def test_many_small_headers_are_refused_too(small):
    headers = {f"X-{n}": "" for n in range(200)}
    refused(small.client.get("/health", headers=headers), 431, "headers_too_large")
    assert sum(map(len, headers)) < 1000


def test_json_has_a_cap_of_its_own_and_uploads_do_not(small, tiny):
    content = f'{{"model": "{BASE_NAME}", "prompt": "a", "max_tokens": 1}}'.encode()
    headers = {"Content-Type": "application/json"}
    ok(small.client.post("/v1/completions", content=content.ljust(2000), headers=headers))
    for body in (content.ljust(2001), iter([content.ljust(2001)])):
        message = refused(small.client.post("/v1/completions", content=body, headers=headers), 413, "body_too_large")
        assert "2000 bytes" in message
    content = tiny.core_file(0).ljust(2001)
    assert small.client.put("/v1/tasks/big", content=content).json()["error"]["code"] != "body_too_large"
    response = small.client.put("/v1/tenants/x/quota", content=content)
    refused(response, 413, "body_too_large")


def test_a_page_of_a_named_origin_may_call_and_read(small):
    preflight = small.client.options(
        "/v1/completions",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    response = small.client.get("/v1/models", headers={"Origin": PAGE})
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "ETag" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_a_page_may_use_openais_sdk(small):
    asked = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"
    headers = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
    }
    preflight = small.client.options("/v1/completions", headers=headers)
    assert preflight.status_code == 200
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in asked.split(","))
    response = small.client.get("/v1/models", headers={"Origin": PAGE})
    assert "X-Should-Retry" in response.headers["access-control-expose-headers"], "its SDK asks this header"


def test_a_page_of_another_origin_may_not(small):
    preflight = {"Origin": "https://evil.example.org", "Access-Control-Request-Method": "POST"}
    assert small.client.options("/v1/completions", headers=preflight).status_code == 400
    response = small.client.get("/v1/models", headers={"Origin": "https://evil.example.org"})
    assert "access-control-allow-origin" not in response.headers


def test_without_the_option_no_page_may_call(server):
    for headers in ({"Origin": PAGE}, {"Origin": PAGE, "Access-Control-Request-Method": "POST"}):
        for method in ("GET", "OPTIONS"):
            response = server.client.request(method, "/v1/models", headers=headers)
            assert not any(name.startswith("access-control") for name in response.headers)


def test_a_browser_asks_for_leave_without_a_key(start_server):
    server = start_server(require_auth=True, cors_origin=["*"])
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert server.client.options("/v1/completions", headers=preflight).status_code == 200
    response = server.client.post("/v1/completions", json={}, headers={"Origin": PAGE})
    refused(response, 401, "invalid_api_key")
    assert response.headers["access-control-allow-origin"] == "*", "the page can read why"
