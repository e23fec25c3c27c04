"""Tasks of tenants: private to them, beside the shared ones; exact quotas; and who did what."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from onebasis.identity.caller import Scope
from tests.api.server import RunningServer, ok, refused
from tests.api.test_auth import NEEDED, create_key
from tests.api.test_quotas import check_exceeded
from tests.api.tiny_model import BASE_NAME

BOTH = {Scope.GENERATE, Scope.REGISTER}


class User:
    """One key, on its own connection. Tenant None: the operator."""

    def __init__(self, server: RunningServer, tenant: str | None) -> None:
        self.model = server.model
        self.key_id, secret = create_key(server, BOTH, tenant=tenant)
        self.client = server.new_client()
        self.client.headers["Authorization"] = f"Bearer {secret}"

    def put(self, name: str, seed: int, **headers: str) -> httpx.Response:
        return self.client.put(f"/v1/tasks/{name}", content=self.model.core_file(seed), headers=headers)

    def digest(self, name: str) -> str:
        found: str = ok(self.client.get(f"/v1/tasks/{name}"))["digest"]
        return found

    def complete(self, model: str, **body: object) -> httpx.Response:
        default = {"model": model, "prompt": "the cat", "max_tokens": 3, "temperature": 0}
        return self.client.post("/v1/completions", json=default | body)

    def answered_by(self, model: str, **body: object) -> str:
        found: str = ok(self.complete(model, **body))["onebasis"]["digest"]
        return found

    def names(self, path: str = "/v1/tasks") -> list[str]:
        return [card["id"] for card in ok(self.client.get(path))["data"]]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def served(tiny, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tenants")
    store = f"sqlite:///{folder}/tasks.db"
    if request.param == "postgres":
        store = request.getfixturevalue("new_postgres_url")()
    with RunningServer(tiny, store=store, require_auth=True, lora_root=folder) as server:
        server.admin = {"Authorization": f"Bearer {create_key(server, {Scope.ADMIN})[1]}"}
        yield server


@pytest.fixture
def user(served):
    users = []

    def make(tenant: str | None) -> User:
        users.append(User(served, tenant))
        return users[-1]

    yield make
    for made in users:
        made.client.close()


def test_another_tenants_task_is_nowhere(user):
    """Every route that names a task answers as if there were none; what lists tasks does not have it."""
    owner, other, operator = user("nowhere-a"), user("nowhere-b"), user(None)
    secret = ok(owner.put("secret", 1))["digest"]
    for caller in (other, operator):
        for method, path in NEEDED:
            if "/tasks/{name}" not in path or method == "PUT" or path.endswith("/blend"):
                continue
            url = re.sub("{name}", "secret", path)
            response = caller.client.request(method, url, json={"digest": secret} if method == "POST" else None)
            assert response.status_code == 404, (method, path)
            if method != "HEAD":
                refused(response, 404, "task_not_found")
        refused(caller.client.get("/v1/models/secret"), 404, "model_not_found", "model")
        for model in ("secret", f"secret@{secret}"):
            refused(caller.complete(model), 404, "model_not_found", "model")
            blend = [{"task": model, "weight": 1}]
            refused(caller.complete(BASE_NAME, blend=blend), 404, "model_not_found", "blend")
            stored = caller.client.post("/v1/tasks/stolen/blend", json={"blend": blend})
            refused(stored, 404, "model_not_found", "blend")
        refused(caller.client.post("/v1/unload_lora_adapter", json={"lora_name": "secret"}), 404, "task_not_found")
        for path in ("/v1/tasks", "/v1/models"):
            assert "secret" not in caller.names(path)
        assert ok(caller.put("secret", 2, **{"If-None-Match": "*"}))["generation"] == 1
    assert (owner.digest("secret"), owner.answered_by("secret")) == (secret, secret)
    assert ok(owner.client.get("/v1/tasks/secret"))["tenant"] == "nowhere-a"
    assert "secret" in owner.names("/v1/models")


def test_a_shared_task_is_everybodys_to_use_and_the_operators_to_change(user):
    tenant, operator = user("shared-a"), user(None)
    shared = ok(operator.put("common", 3))["digest"]
    assert ok(tenant.client.get("/v1/tasks/common"))["tenant"] is None
    assert tenant.answered_by("common") == tenant.answered_by(f"common@{shared}") == shared
    assert "common" in tenant.names()
    assert ok(tenant.client.get("/v1/tasks/common/versions"))["data"][0]["digest"] == shared
    content = tenant.client.get("/v1/tasks/common/content")
    assert content.content == tenant.model.core_file(3)
    for response in (
        tenant.client.delete("/v1/tasks/common"),
        tenant.client.post("/v1/tasks/common/rollback", json={"digest": shared}),
        tenant.client.post("/v1/unload_lora_adapter", json={"lora_name": "common"}),
    ):
        assert "shared by all tenants" in refused(response, 403, "permission_denied")
    assert operator.digest("common") == shared


def test_a_tenants_own_task_comes_before_a_shared_one_of_its_name(user):
    tenant, other, operator = user("shadow-a"), user("shadow-b"), user(None)
    shared = ok(operator.put("both", 4))["digest"]
    own = tenant.put("both", 5)
    assert own.status_code == 201
    mine = own.json()["digest"]
    newer = ok(operator.put("both", 6))["digest"]
    assert (tenant.digest("both"), tenant.answered_by("both")) == (mine, mine), "nobody changes what it gets"
    assert tenant.names().count("both") == tenant.names("/v1/models").count("both") == 1
    assert other.answered_by("both") == newer
    refused(tenant.complete(f"both@{shared}"), 404, "model_not_found", "model")
    assert [v["digest"] for v in ok(tenant.client.get("/v1/tasks/both/versions"))["data"]] == [mine]
    ok(tenant.client.delete("/v1/tasks/both"))
    assert tenant.answered_by("both") == newer
    assert operator.digest("both") == newer


def test_pages_hold_own_and_shared_tasks_once_in_order(user):
    tenant, operator = user("paged-a"), user(None)
    for n, owner in enumerate((operator, tenant, operator, tenant, tenant, operator)):
        ok(owner.put(f"page-{n}", n))
    ok(tenant.put("page-0", 9))
    found: list[str] = []
    after = "page-"
    while True:
        page = ok(tenant.client.get("/v1/tasks", params={"limit": 2, "after": after}))
        found += [card["id"] for card in page["data"] if card["id"].startswith("page-")]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert found == [f"page-{n}" for n in range(6)]


def test_a_tenants_blend_is_its_own(user):
    tenant, other, operator = user("blend-a"), user("blend-b"), user(None)
    ok(operator.put("left", 7))
    ok(tenant.put("right", 8))
    weights = [{"task": "left", "weight": 0.5}, {"task": "right", "weight": 0.5}]
    ok(tenant.client.post("/v1/tasks/mix/blend", json={"blend": weights}))
    assert ok(tenant.client.get("/v1/tasks/mix"))["tenant"] == "blend-a"
    refused(other.client.get("/v1/tasks/mix"), 404, "task_not_found")
    refused(other.complete(BASE_NAME, blend=weights), 404, "model_not_found", "blend")


def test_the_servers_disk_is_not_the_tenants(user, served):
    tenant, operator = user("disk-a"), user(None)
    (served.config.lora_root / "of-disk.coef.safetensors").write_bytes(tenant.model.core_file(40))
    body = {"lora_name": "of-disk", "lora_path": "of-disk.coef.safetensors"}
    response = tenant.client.post("/v1/load_lora_adapter", json=body)
    assert "the server's files are the operator's" in refused(response, 403, "permission_denied")
    assert operator.client.post("/v1/load_lora_adapter", json=body).status_code == 200
    assert tenant.answered_by("of-disk") == operator.digest("of-disk")


def test_other_replicas_keep_tenants_apart_too(user, served, tiny):
    owner, other = user("replica-a"), user("replica-b")
    with RunningServer(tiny, store=served.config.store, require_auth=True) as second:
        secret = ok(owner.put("later", 10))["digest"]
        with second.new_client() as client:
            body = {"model": "later", "prompt": "a", "max_tokens": 1}
            answer = ok(client.post("/v1/completions", json=body, headers=owner.client.headers))
            assert answer["onebasis"]["digest"] == secret
            response = client.get("/v1/tasks/later", headers=other.client.headers)
            refused(response, 404, "task_not_found")


def test_tasks_and_bytes_have_exact_quotas(user, served):
    tenant = user("quota-a")
    size = len(tenant.model.core_file(0))
    url = "/v1/tenants/quota-a/quota"
    ok(served.client.put(url, json={"tasks": 2, "bytes": 3 * size}, headers=served.admin))
    assert tenant.put("one", 20).status_code == 201
    assert tenant.put("two", 20).status_code == 201
    response = tenant.put("three", 20)
    assert "found 2 registered" in response.json()["error"]["message"]
    assert check_exceeded(response, "tasks", 2) == 60
    ok(tenant.put("one", 21))
    ok(tenant.put("one", 22))
    assert f"found {4 * size} with this file" in tenant.put("two", 23).json()["error"]["message"]
    check_exceeded(tenant.put("two", 23), "bytes", 3 * size)
    assert tenant.put("two", 21).status_code == 201, "a file that it has stored already"
    assert tenant.put("two", 21).status_code == 200, "what stands already adds nothing"
    first = ok(tenant.client.get("/v1/tasks/one/versions"))["data"][-1]["digest"]
    assert tenant.client.post("/v1/tasks/one/rollback", json={"digest": first}).status_code == 201
    ok(tenant.client.delete("/v1/tasks/one"))
    assert tenant.put("three", 23).status_code == 201, "a deleted task takes up nothing"
    assert user("quota-b").put("one", 24).status_code == 201
    assert "three" in tenant.names()
    assert "one" not in tenant.names()


def test_uploads_at_once_do_not_pass_a_quota_together(user, served):
    users = [user("race-a") for _ in range(4)]
    ok(served.client.put("/v1/tenants/race-a/quota", json={"tasks": 3}, headers=served.admin))
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda n: users[n % 4].put(f"race-{n}", n).status_code, range(12)))
    assert sorted(codes) == [201] * 3 + [429] * 9


def test_every_change_of_a_task_is_in_the_audit_log(user, served):
    tenant = user("audit-a")
    last = served.parts.app.state.services.identity.audit.page(1000)[-1].id
    first = ok(tenant.put("noted", 30, **{"X-Request-Id": "put-1"}))["digest"]
    ok(tenant.put("noted", 30))
    second = ok(tenant.put("noted", 31))["digest"]
    ok(tenant.client.post("/v1/tasks/noted/rollback", json={"digest": first}))
    blend = {"blend": [{"task": "noted", "weight": 1}]}
    mixed = ok(tenant.client.post("/v1/tasks/mixed/blend", json=blend))["digest"]
    ok(tenant.client.delete("/v1/tasks/noted"))
    tenant.client.delete("/v1/tasks/noted")
    tenant.put("-", 1)
    found = ok(served.client.get("/v1/audit", params={"after": last}, headers=served.admin))["data"]
    assert [(e["action"], e["subject"], e["digest"], e["generation"]) for e in found] == [
        ("task.put", "noted", first, 1),
        ("task.put", "noted", second, 2),
        ("task.rollback", "noted", first, 3),
        ("task.blend", "mixed", mixed, 1),
        ("task.delete", "noted", first, 3),
    ]
    assert {(e["key_id"], e["tenant"]) for e in found} == {(tenant.key_id, "audit-a")}
    assert found[0]["request_id"] == "put-1"


def test_a_tenants_own_task_can_be_named_to_the_tokenizer(user):
    acme, other = user("acme"), user("other")
    ok(acme.put("tokenized", 1))
    for path, body in (("/tokenize", {"prompt": "the cat"}), ("/detokenize", {"tokens": [5]})):
        ok(acme.client.post(path, json=body | {"model": "tokenized"}))
        refused(other.client.post(path, json=body | {"model": "tokenized"}), 404, "model_not_found", "model")


def test_a_tenant_may_let_others_go_first_and_not_itself(user):
    acme, operator = user("acme"), user(None)
    assert "priority -1" in refused(acme.complete(BASE_NAME, priority=-1), 403, "permission_denied")
    for asker, priority in ((acme, 0), (acme, 5), (operator, -1)):
        ok(asker.complete(BASE_NAME, priority=priority))
