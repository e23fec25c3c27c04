"""Keys, tenants and quotas through both clients and the command, against a server that requires a key."""

import json
import time

import pytest
from typer.testing import CliRunner

from onebasis_client import Backoff, api_errors
from onebasis_client.access import Scope
from onebasis_client.cli.app import app
from tests.api.server import RunningServer
from tests.api.test_auth import create_key
from tests.api.tiny_model import BASE_NAME
from tests.client.conftest import url_of

QUIET = {"temperature": 0, "ignore_eos": True, "max_tokens": 4}


@pytest.fixture(scope="module")
def closed(tiny):
    """A server that lets nobody in without a key."""
    with RunningServer(tiny, require_auth=True) as server:
        server.admin_key = create_key(server, {Scope.ADMIN})[1]
        yield server


@pytest.fixture
def admin(closed, connect):
    return connect(url_of(closed), api_key=closed.admin_key)


@pytest.fixture
def tenant(request):
    """A name of the test's own."""
    return "".join(c for c in request.node.name if c.isalnum())[-80:]


@pytest.fixture
def run(closed):
    """Runs the command with the admin's key, unless told."""
    environment = {
        "ONEBASIS_URL": url_of(closed),
        "ONEBASIS_API_KEY": closed.admin_key,
        "COLUMNS": "200",
        "TERM": "dumb",
    }

    def invoke(*args, **env):
        return CliRunner().invoke(app, args, env=environment | env)

    return invoke


def test_the_right_key_opens_and_the_answer_is_as_ever(closed, connect, admin):
    made = admin.create_key("app", [Scope.GENERATE])
    client = connect(url_of(closed), api_key=made.key)
    assert client.complete(BASE_NAME, "the cat", **QUIET).usage.completion_tokens == 4
    with client.stream_completion(BASE_NAME, "the cat", **QUIET) as chunks:
        assert len(list(chunks)) == 5


@pytest.mark.parametrize("key", [None, "ob_wrong"])
def test_no_key_and_a_wrong_key_are_refused_at_once(closed, connect, key):
    client = connect(url_of(closed), api_key=key)
    with pytest.raises(api_errors.InvalidApiKey) as caught:
        client.models()
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert isinstance(caught.value, api_errors.RequestError)
    with pytest.raises(api_errors.InvalidApiKey), client.stream_completion(BASE_NAME, "the cat"):
        pytest.fail("the block was entered")


def test_a_key_without_the_scope_is_refused(closed, connect, admin):
    reader = connect(url_of(closed), api_key=admin.create_key("reader", [Scope.GENERATE]).key)
    for act in (
        lambda: reader.register("a", closed.model.core_file(1)),
        lambda: reader.create_key("mine", [Scope.ADMIN]),
        lambda: list(reader.api_keys()),
        lambda: reader.set_quota("acme", tasks=1),
        lambda: list(reader.audit()),
    ):
        with pytest.raises(api_errors.PermissionDenied) as caught:
            act()
        assert caught.value.status == 403
    with pytest.raises(api_errors.PermissionDenied):
        admin.complete(BASE_NAME, "the cat", **QUIET)


def test_a_key_is_listed_without_its_secret_and_opens_nothing_once_revoked(closed, connect, admin, tenant):
    expires_at = int(time.time()) + 1000
    made = admin.create_key("ci", [Scope.REGISTER, Scope.GENERATE], tenant=tenant, expires_at=expires_at)
    assert (made.label, made.scopes, made.tenant) == ("ci", ("generate", "register"), tenant)
    assert (made.expires_at, made.revoked_at) == (expires_at, None)
    assert made.key not in repr(made)
    listed = {key.id: key for key in admin.api_keys(page_size=1)}
    assert list(listed) == sorted(listed)
    assert (listed[made.id].label, listed[made.id].tenant) == ("ci", tenant)
    assert not hasattr(listed[made.id], "key")

    client = connect(url_of(closed), api_key=made.key)
    client.models()
    admin.revoke_key(made.id)
    admin.revoke_key(made.id)
    assert {key.id: key for key in admin.api_keys()}[made.id].revoked_at is not None
    with pytest.raises(api_errors.InvalidApiKey):
        _within_3_s(client.models)
    with pytest.raises(api_errors.KeyNotFound):
        admin.revoke_key("key-0000000000000000")


def test_a_tenants_task_says_whose_it_is_and_others_do_not_see_it(closed, connect, admin, tenant):
    scopes = [Scope.GENERATE, Scope.REGISTER]
    own = connect(url_of(closed), api_key=admin.create_key("own", scopes, tenant=tenant).key)
    operator = connect(url_of(closed), api_key=admin.create_key("operator", scopes).key)
    assert own.register(f"{tenant}.mine", closed.model.core_file(1)).task.tenant == tenant
    with pytest.raises(api_errors.TaskNotFound):
        operator.show(f"{tenant}.mine")
    assert operator.register(f"{tenant}.shared", closed.model.core_file(2)).task.tenant is None
    with pytest.raises(api_errors.PermissionDenied):
        own.delete(f"{tenant}.shared")


def test_a_quota_is_set_shown_and_replaced_as_a_whole(admin, tenant):
    assert admin.quota(tenant).tasks is None
    stored = admin.set_quota(tenant, tasks=3, tokens_per_minute=1000)
    assert (stored.tenant, stored.tasks, stored.tokens_per_minute, stored.bytes) == (tenant, 3, 1000, None)
    assert admin.quota(tenant) == stored
    assert admin.set_quota(tenant, bytes=9).tasks is None
    with pytest.raises(api_errors.InvalidParameter):
        admin.set_quota(tenant, tasks=-1)


def test_a_quota_that_time_does_not_free_is_told_at_once(closed, connect, admin, tenant):
    admin.set_quota(tenant, tasks=0)
    own = connect(url_of(closed), api_key=admin.create_key("own", [Scope.REGISTER], tenant=tenant).key)
    started_s = time.monotonic()
    with pytest.raises(api_errors.QuotaExceeded) as caught:
        own.register("a", closed.model.core_file(1))
    assert time.monotonic() - started_s < 5
    assert isinstance(caught.value, api_errors.CapacityError)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 60)


def test_a_rate_is_waited_for(closed, connect, admin, tenant):
    admin.set_quota(tenant, requests_per_minute=60)
    key = admin.create_key("own", [Scope.GENERATE], tenant=tenant).key
    once = connect(url_of(closed), api_key=key, retries=Backoff(n_retries=0))
    with pytest.raises(api_errors.QuotaExceeded) as caught:
        for _ in range(200):
            once.models()
    assert caught.value.retry_after_s >= 1
    assert connect(url_of(closed), api_key=key).models()


def test_the_audit_log_is_followed_across_pages(closed, admin, tenant):
    known = max((entry.id for entry in admin.audit()), default=0)
    made = admin.create_key("audited", [Scope.ADMIN])
    admin.set_quota(tenant, tasks=1)
    admin.revoke_key(made.id)
    found = list(admin.audit(after=known, page_size=1))
    assert [(entry.action, entry.subject) for entry in found] == [
        ("key.create", made.id),
        ("quota.set", tenant),
        ("key.revoke", made.id),
    ]
    assert len({entry.key_id for entry in found}) == 1
    assert all(entry.request_id for entry in found)
    assert list(admin.audit(after=found[-1].id)) == []


def test_the_command_makes_lists_and_revokes_keys(run, tenant):
    made = run("keys", "create", "--label", "ops", "--scope", "generate", "--scope", "register", "--tenant", tenant)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert key.startswith("ob_")
    assert key not in made.stderr
    (listed,) = [k for k in json.loads(run("--json", "keys", "list").stdout) if k["tenant"] == tenant]
    assert (listed["label"], listed["scopes"], listed["revoked_at"]) == ("ops", ["generate", "register"], None)
    assert run("list", ONEBASIS_API_KEY=key).exit_code == 0
    assert run("keys", "revoke", listed["id"]).stdout == f"{listed['id']}: revoked\n"
    (row,) = [row for row in run("keys", "list").stdout.splitlines() if listed["id"] in row]
    assert "ops" in row
    assert run("keys", "revoke", "key-0000000000000000").exit_code == 1


def test_the_command_says_when_a_key_expires(run):
    made = json.loads(
        run("--json", "keys", "create", "--label", "x", "--scope", "generate", "--expires-in-days", "2").stdout
    )
    assert made["expires_at"] - made["created_at"] in range(2 * 86400 - 2, 2 * 86400 + 3)
    wrong = run("keys", "create", "--label", "x", "--scope", "everything")
    assert (wrong.exit_code, "everything" in wrong.stderr) == (2, True)


def test_the_command_sets_and_shows_quotas_and_the_audit_log(run, tenant):
    limits = ("--tasks", "1", "--bytes", "2", "--requests-per-minute", "3", "--tokens-per-minute", "4")
    stored = json.loads(run("--json", "quota", "set", tenant, *limits, "--concurrent-requests", "5").stdout)
    assert list(stored.values()) == [tenant, 1, 2, 3, 4, 5]
    assert json.loads(run("--json", "quota", "show", tenant).stdout) == stored
    assert "requests_per_minute" in run("quota", "show", tenant).stdout
    entries = json.loads(run("--json", "audit").stdout)
    (entry,) = [entry for entry in entries if entry["subject"] == tenant]
    assert entry["action"] == "quota.set"
    assert json.loads(run("--json", "audit", "--after", str(entries[-1]["id"])).stdout) == []
    assert tenant in run("audit").stdout


def test_the_command_without_a_key_is_refused(run):
    found = run("keys", "list", ONEBASIS_API_KEY="ob_wrong")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "[invalid_api_key]" in found.stderr


def _within_3_s(act):
    """Until it raises: a revoked key may count for 2 s more."""
    deadline_s = time.monotonic() + 3
    while time.monotonic() < deadline_s:
        act()
        time.sleep(0.05)
