"""What a tenant may use, over HTTP: rates per replica, set by an admin, and refused with the reason and the time."""

import time

import pytest

from onebasis.identity.caller import Scope
from tests.api.server import RunningServer, ok, refused, wait_until
from tests.api.test_auth import OPERATOR, create_key
from tests.api.tiny_model import BASE_NAME

PROMPT = "the cat"


@pytest.fixture(scope="module")
def quota_server(tiny):
    with RunningServer(tiny, require_auth=True, tenant_requests_per_minute=1000) as server:
        server.admin = {"Authorization": f"Bearer {create_key(server, {Scope.ADMIN})[1]}"}
        yield server


class Tenant:
    """A tenant that may do everything, with a quota."""

    def __init__(self, server: RunningServer, name: str, **quota: int) -> None:
        self.server = server
        self.quota_url = f"/v1/tenants/{name}/quota"
        if quota:
            ok(server.client.put(self.quota_url, json=quota, headers=server.admin))
        secret = create_key(server, {Scope.GENERATE, Scope.REGISTER}, tenant=name)[1]
        self.client = server.new_client()
        self.client.headers["Authorization"] = f"Bearer {secret}"

    def complete(self, **body):
        default = {"model": BASE_NAME, "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True}
        return self.client.post("/v1/completions", json=default | body)


@pytest.fixture
def tenant(quota_server, request):
    tenants = []

    def make(**quota):
        name = "".join(c for c in request.node.name if c.isalnum())[:80]
        tenants.append(Tenant(quota_server, f"{name}-{len(tenants)}", **quota))
        return tenants[-1]

    yield make
    for made in tenants:
        made.client.close()


def check_exceeded(response, quota: str, allowed: int) -> int:
    """The refusal says what was found and what is allowed; how long to wait."""
    message = refused(response, 429, "quota_exceeded")
    assert message.startswith(f"quota {quota}: found ")
    assert f", allowed {allowed};" in message
    assert response.json()["error"]["type"] == "rate_limit_error"
    return int(response.headers["retry-after"])


def test_requests_beyond_the_rate_are_refused_until_the_time_that_is_told(tenant):
    acme, other = tenant(requests_per_minute=60), tenant(requests_per_minute=60)
    answers = [acme.client.get("/v1/models") for _ in range(70)]
    codes = [answer.status_code for answer in answers]
    assert codes.index(429) >= 60
    assert check_exceeded(answers[-1], "requests_per_minute", 60) == 1
    ok(other.client.get("/v1/models"))
    time.sleep(1.1)
    ok(acme.client.get("/v1/models"))


def test_tokens_of_prompt_and_answer_count_and_a_debt_keeps_out_generation_alone(tenant, quota_server):
    acme = tenant(tokens_per_minute=30)
    n_prompt = len(quota_server.model.encode(PROMPT))
    first = ok(acme.complete())
    used = first["usage"]["total_tokens"]
    assert used == n_prompt + 8
    while used < 30:
        used += ok(acme.complete())["usage"]["total_tokens"]
    response = acme.complete()
    debt = used - 30
    assert 2 * debt - 10 <= check_exceeded(response, "tokens_per_minute", 30) <= 2 * (debt + 1) + 1
    ok(acme.client.get("/v1/models"))


def test_a_streams_tokens_count_as_far_as_it_came(tenant, quota_server):
    acme = tenant(tokens_per_minute=10)
    with acme.client.stream(
        "POST",
        "/v1/completions",
        json={"model": BASE_NAME, "prompt": PROMPT, "max_tokens": 500, "stream": True, "ignore_eos": True},
    ) as response:
        lines = response.iter_lines()
        for _ in range(40):
            next(lines)
    quota_server.wait_until_idle()
    retry_after_s = check_exceeded(acme.complete(), "tokens_per_minute", 10)
    assert 30 < retry_after_s <= 60 * 500 / 10


def test_a_request_counts_as_running_until_its_stream_has_ended(tenant, gate, quota_server):
    acme = tenant(concurrent_requests=1)
    body = {"model": BASE_NAME, "prompt": PROMPT, "max_tokens": 4, "stream": True, "ignore_eos": True}
    with gate.shut(), acme.client.stream("POST", "/v1/completions", json=body) as stream:
        gate.wait_for_a_step()
        with quota_server.new_client() as second:
            headers = {"Authorization": acme.client.headers["Authorization"]}
            response = second.get("/v1/models", headers=headers)
            assert check_exceeded(response, "concurrent_requests", 1) == 1
            stream.close()
            wait_until(
                lambda: second.get("/v1/models", headers=headers).status_code == 200, "the request is still counted"
            )
    quota_server.wait_until_idle()


def test_a_tenant_without_a_quota_has_the_servers_default(tenant, quota_server):
    acme = tenant()
    shown = ok(quota_server.client.get(acme.quota_url, headers=quota_server.admin))
    assert shown == {
        "object": "quota",
        "tenant": shown["tenant"],
        "tasks": None,
        "bytes": None,
        "requests_per_minute": 1000,
        "tokens_per_minute": None,
        "concurrent_requests": None,
    }


def test_a_quota_is_replaced_as_a_whole_and_counts_within_two_seconds(tenant, quota_server):
    acme = tenant(requests_per_minute=0, concurrent_requests=5)
    assert check_exceeded(acme.client.get("/v1/models"), "requests_per_minute", 0) == 3600
    shown = ok(quota_server.client.put(acme.quota_url, json={"tokens_per_minute": 7}, headers=quota_server.admin))
    assert (shown["tokens_per_minute"], shown["requests_per_minute"], shown["concurrent_requests"]) == (7, None, None)
    wait_until(lambda: acme.client.get("/v1/models").status_code == 200, "still refused", timeout_s=2)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"requests_per_minute": -1}, "invalid_parameter", "requests_per_minute"),
        ({"requests_per_minute": 1.5}, "invalid_parameter", "requests_per_minute"),
        ({"tasks": 2**53}, "invalid_parameter", "tasks"),
        ({"gpus": 1}, "unsupported_parameter", "gpus"),
    ],
)
def test_a_quota_that_makes_no_sense_is_refused_by_field(quota_server, body, code, param):
    response = quota_server.client.put("/v1/tenants/acme/quota", json=body, headers=quota_server.admin)
    refused(response, 400, code, param)


def test_a_tenants_name_is_checked(quota_server):
    for method in ("GET", "PUT"):
        response = quota_server.client.request(method, "/v1/tenants/-/quota", json={}, headers=quota_server.admin)
        refused(response, 400, "invalid_parameter", "tenant")


def test_an_operators_key_has_no_quota(quota_server):
    secret = create_key(quota_server, {Scope.GENERATE})[1]
    headers = {"Authorization": f"Bearer {secret}"}
    codes = {quota_server.client.get("/v1/models", headers=headers).status_code for _ in range(1100)}
    assert codes == {200}


def test_changes_of_quotas_and_keys_are_in_the_audit_log_with_the_request(quota_server):
    client, admin = quota_server.client, quota_server.admin
    last = quota_server.parts.app.state.services.identity.audit.page(1000)[-1].id
    ok(client.put("/v1/tenants/audited/quota", json={}, headers=admin | {"X-Request-Id": "first"}))
    made = ok(client.post("/v1/keys", json={"label": "x", "scopes": ["generate"]}, headers=admin))
    ok(client.delete(f"/v1/keys/{made['id']}", headers=admin | {"X-Request-Id": "third"}))
    page = ok(client.get("/v1/audit", params={"after": last, "limit": 2}, headers=admin))
    assert page["has_more"] is True
    rest = ok(client.get("/v1/audit", params={"after": page["last_id"]}, headers=admin))
    assert rest["has_more"] is False
    entries = page["data"] + rest["data"]
    assert [(e["action"], e["subject"]) for e in entries] == [
        ("quota.set", "audited"),
        ("key.create", made["id"]),
        ("key.revoke", made["id"]),
    ]
    assert (entries[0]["request_id"], entries[2]["request_id"]) == ("first", "third")
    assert len({entry["key_id"] for entry in entries} - {None, OPERATOR.key_id}) == 1
    assert abs(entries[0]["at"] - time.time()) < 60
    assert made["key"] not in str(entries)


def test_a_stream_uses_up_its_tokens_while_it_runs(tenant, quota_server):
    acme = tenant(tokens_per_minute=10)
    body = {"model": BASE_NAME, "prompt": PROMPT, "max_tokens": 500, "stream": True, "ignore_eos": True}
    with acme.client.stream("POST", "/v1/completions", json=body) as response, quota_server.new_client() as second:
        lines = response.iter_lines()
        for _ in range(40):
            next(lines)
        headers = {"Authorization": acme.client.headers["Authorization"]}
        late = second.post("/v1/completions", json={"model": BASE_NAME, "prompt": PROMPT}, headers=headers)
        check_exceeded(late, "tokens_per_minute", 10)
    quota_server.wait_until_idle()


def test_more_answers_than_a_tenant_may_ever_have_in_flight_are_no_matter_of_waiting(tenant, start_server):
    server = start_server(require_auth=True, max_running=2, max_waiting=6, max_waiting_per_tenant=1)
    acme = Tenant(server, "acme")
    with acme.client:
        message = refused(acme.complete(prompt=["a"] * 4), 400, "invalid_parameter", "n")
        assert "is 4, allowed are 3" in message
        ok(acme.complete(prompt=["a"] * 3))
