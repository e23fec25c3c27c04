"""Keys, quotas and the audit log in a database, SQLite and PostgreSQL."""

import re
from dataclasses import asdict

import pytest
from sqlalchemy import text

from onebasis.core.errors import InvalidParameter
from onebasis.identity import audit
from onebasis.identity.audit import AuditLog
from onebasis.identity.caller import Scope
from onebasis.identity.errors import KeyNotFound
from onebasis.identity.key_store import KeyStore
from onebasis.identity.keys import hash_key
from onebasis.identity.quota import Quota
from onebasis.identity.quota_store import QuotaStore
from tests.identity.builders import ADMIN, GENERATE, Clock

DEFAULT = Quota(tasks=5)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(database, clock):
    return KeyStore(database, clock)


@pytest.fixture
def quotas(database, clock):
    return QuotaStore(database, DEFAULT, clock)


def changes(database) -> list[tuple[str, str]]:
    return [(entry.action, entry.subject) for entry in AuditLog(database).page(100)]


def test_a_key_is_256_random_bits_and_only_its_hash_is_kept(keys, database):
    key, secret = keys.create(ADMIN, label="ci", scopes=GENERATE)
    assert re.fullmatch(r"ob_[A-Za-z0-9_-]{43}", secret)
    assert keys.find(hash_key(secret)) == key
    with database.reading() as connection:
        stored = [str(connection.execute(text(f"SELECT * FROM {table}")).all()) for table in ("api_keys", "audit_log")]
    assert key.key_hash in stored[0]
    assert secret not in str(stored) + str(key)
    assert secret[3:20] not in str(stored)
    assert keys.create(ADMIN, label="ci", scopes=GENERATE)[1] != secret


def test_a_key_comes_back_as_it_was_made(keys, clock):
    both = frozenset({Scope.REGISTER, Scope.GENERATE})
    made, secret = keys.create(ADMIN, label="x", scopes=both, tenant="acme", expires_at=2000)
    found = keys.find(hash_key(secret))
    assert found == made
    assert (found.label, found.scopes, found.tenant) == ("x", both, "acme")
    assert (found.created_at, found.expires_at, found.revoked_at) == (1000, 2000, None)


def test_a_revoked_key_stays_on_record(keys, clock):
    assert not keys.has_any()
    key, secret = keys.create(ADMIN, label="x", scopes=GENERATE)
    clock.now_s = 1005
    keys.revoke(ADMIN, key.id)
    clock.now_s = 1010
    keys.revoke(ADMIN, key.id)
    assert keys.find(hash_key(secret)).revoked_at == 1005
    assert keys.has_any()
    with pytest.raises(KeyNotFound):
        keys.revoke(ADMIN, "key-0")


@pytest.mark.parametrize(
    ("hash_of", "now", "opens"),
    [("mine", 1000, True), ("other", 1000, False), ("mine", 1999.9, True), ("mine", 2000, False)],
)
def test_a_key_opens_with_its_own_hash_until_it_expires(keys, hash_of, now, opens):
    key, secret = keys.create(ADMIN, label="x", scopes=GENERATE, expires_at=2000)
    assert key.opens_with(hash_key(secret if hash_of == "mine" else "other"), now) is opens


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"tenant": "a/b"}, "tenant 'a/b': needs 1 to 128"),
        ({"tenant": "acme", "scopes": frozenset({Scope.ADMIN})}, "an admin key belongs to no tenant"),
        ({"expires_at": 1000}, "expires_at: found 1000, needs a Unix second after now"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_and_not_recorded(keys, database, changed, complaint):
    with pytest.raises(InvalidParameter, match=complaint):
        keys.create(ADMIN, **({"label": "x", "scopes": GENERATE} | changed))
    assert not keys.has_any()
    assert changes(database) == []


def test_pages_of_keys_are_whole(keys):
    made = sorted((keys.create(ADMIN, label=str(n), scopes=GENERATE)[0] for n in range(5)), key=lambda key: key.id)
    first = keys.page(2)
    assert first + keys.page(100, after=first[-1].id) == made


def test_a_tenant_has_the_default_until_it_has_a_quota_of_its_own(quotas):
    assert quotas.of("acme") == DEFAULT
    own = Quota(bytes=7, requests_per_minute=1, tokens_per_minute=2**40, concurrent_requests=0)
    quotas.put(ADMIN, "acme", Quota(tasks=1))
    quotas.put(ADMIN, "acme", own)
    assert quotas.of("acme") == own, "the default's limit of tasks counts no longer"
    assert quotas.of("zeta") == DEFAULT


def test_every_change_is_in_the_audit_log_with_its_author(keys, quotas, database, clock):
    key, _ = keys.create(ADMIN, label="x", scopes=GENERATE)
    clock.now_s = 1007
    quotas.put(ADMIN, "acme", Quota())
    keys.revoke(ADMIN, key.id)
    keys.revoke(ADMIN, key.id)
    assert changes(database) == [("key.create", key.id), ("quota.set", "acme"), ("key.revoke", key.id)]
    log = AuditLog(database)
    first, second, third = log.page(10)
    shown = asdict(second)
    assert shown.pop("id") == second.id
    assert shown == {
        "at": 1007,
        "key_id": "key-admin",
        "tenant": None,
        "request_id": "req-1",
        "action": "quota.set",
        "subject": "acme",
        "digest": None,
        "generation": None,
    }
    assert first.id < second.id < third.id
    assert log.page(1, after=first.id) == [second]
    assert log.page(10, after=third.id) == []


def test_a_change_that_can_not_be_recorded_does_not_happen(keys, quotas, monkeypatch):
    key, secret = keys.create(ADMIN, label="x", scopes=GENERATE)

    def fails(*_: object) -> None:
        raise RuntimeError("no space")

    for module in ("key_store", "quota_store"):
        monkeypatch.setattr(f"onebasis.identity.{module}.record", fails)
    for change in (
        lambda: keys.create(ADMIN, label="y", scopes=GENERATE),
        lambda: keys.revoke(ADMIN, key.id),
        lambda: quotas.put(ADMIN, "acme", Quota(tasks=0)),
    ):
        with pytest.raises(RuntimeError):
            change()
    assert keys.page(10) == [key]
    assert keys.find(hash_key(secret)).revoked_at is None
    assert quotas.of("acme") == DEFAULT
    assert audit.record is not fails
