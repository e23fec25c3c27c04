"""Who a key makes its bearer, for how long an answer is remembered, and what happens without a database."""

import pytest

from onebasis.core.errors import StoreUnavailable
from onebasis.identity.authenticator import Authenticator
from onebasis.identity.caller import OPERATOR, Caller
from onebasis.identity.errors import InvalidApiKey
from onebasis.identity.key_file import KeyFile
from onebasis.identity.key_store import KeyStore
from onebasis.identity.quota import UNLIMITED, Quota
from onebasis.identity.quota_store import QuotaStore
from tests.identity.builders import ADMIN, GENERATE, Clock

FILE_KEY = "f" * 40
DEFAULT = Quota(tasks=5)


class Door:
    """An authenticator over a real database, with a clock that the test moves."""

    def __init__(self, database, *, key_file=None, needs_key=False) -> None:
        self.clock = Clock()
        self.keys = KeyStore(database, self.clock)
        self.quotas = QuotaStore(database, DEFAULT, self.clock)
        self._authenticator = Authenticator(
            self.keys,
            self.quotas,
            key_file=key_file,
            needs_key=needs_key,
            clock=self.clock,
            monotonic=self.clock,
        )

    def new_key(self, **changed) -> tuple[str, str]:
        """(id, key)"""
        key, secret = self.keys.create(ADMIN, **({"label": "x", "scopes": GENERATE} | changed))
        return key.id, secret

    def open(self, presented: str) -> Caller:
        """As the middleware does it."""
        finding = self._authenticator.recent(presented) or self._authenticator.look_up(presented)
        return self._authenticator.caller(presented, finding, "req-9")

    def refuses(self, presented: str) -> bool:
        try:
            self.open(presented)
        except InvalidApiKey:
            return True
        return False


@pytest.fixture
def door(database):
    return Door(database)


def test_before_the_first_key_everybody_is_the_operator_but_no_admin(door):
    for presented in ("", "EMPTY", "ob_whatever"):
        caller = door.open(presented)
        assert (caller.key_id, caller.tenant, caller.scopes) == (None, None, OPERATOR.scopes)
        assert caller.request_id == "req-9"


def test_the_first_key_closes_the_door_and_revoking_it_does_not_open_it(door):
    assert not door.refuses("")
    key_id, secret = door.new_key()
    door.clock.now_s += 1
    assert door.refuses("")
    assert door.refuses("EMPTY")
    door.keys.revoke(ADMIN, key_id)
    door.clock.now_s += 1
    assert all(map(door.refuses, ("", "EMPTY", secret)))


def test_the_door_is_shut_without_keys_if_so_wanted(database):
    door = Door(database, needs_key=True)
    assert door.refuses("")
    assert door.refuses("EMPTY")


def test_a_key_makes_its_bearer_who_it_says(door):
    key_id, secret = door.new_key(tenant="acme")
    caller = door.open(secret)
    assert (caller.key_id, caller.tenant, caller.scopes, caller.quota) == (key_id, "acme", GENERATE, DEFAULT)
    assert caller.share == "acme"


def test_an_operators_key_has_no_quota_and_a_share_of_its_own(door):
    key_id, secret = door.new_key()
    caller = door.open(secret)
    assert (caller.tenant, caller.quota, caller.share) == (None, UNLIMITED, key_id)


@pytest.mark.parametrize("n_more", [-1, 1])
def test_a_part_of_a_key_or_more_than_it_is_no_key(door, n_more):
    _, secret = door.new_key()
    assert door.refuses(secret[:-1] if n_more < 0 else secret + "x")
    assert door.refuses(secret.upper())


def test_a_revoked_key_is_out_within_two_seconds(door):
    key_id, secret = door.new_key()
    door.open(secret)
    door.keys.revoke(ADMIN, key_id)
    door.clock.now_s += 1.9
    assert door.refuses(secret)


def test_a_key_expires_on_the_second_although_it_is_remembered(door):
    _, secret = door.new_key(expires_at=1001)
    door.clock.now_s = 1000.9
    door.open(secret)
    door.clock.now_s = 1001.0
    assert door.refuses(secret)


def test_a_changed_quota_counts_within_two_seconds(door):
    _, secret = door.new_key(tenant="acme")
    door.open(secret)
    door.quotas.put(ADMIN, "acme", Quota(tasks=9))
    door.clock.now_s += 1.9
    assert door.open(secret).quota == Quota(tasks=9)


def test_within_a_second_the_database_is_not_asked_again(door, monkeypatch):
    _, secret = door.new_key()
    door.open(secret)
    monkeypatch.setattr(door.keys, "find", lambda _: pytest.fail("asked again"))
    door.clock.now_s += 0.9
    door.open(secret)


def test_without_a_database_known_keys_work_for_a_minute_and_no_others(door, monkeypatch):
    _, secret = door.new_key()
    door.open(secret)
    n_asked = 0

    def fails(_: str) -> None:
        nonlocal n_asked
        n_asked += 1
        raise StoreUnavailable("gone")

    monkeypatch.setattr(door.keys, "find", fails)
    with pytest.raises(StoreUnavailable):
        door.open("ob_unknown")
    door.clock.now_s += 59
    door.open(secret)
    door.open(secret)
    assert n_asked == 2, "a dead database is asked once a second, not for each request"
    door.clock.now_s += 2
    with pytest.raises(StoreUnavailable):
        door.open(secret)


def test_memory_is_bounded_whatever_is_presented(door, monkeypatch):
    monkeypatch.setattr("onebasis.identity.authenticator._MAX_REMEMBERED", 8)
    for n in range(50):
        door.open(f"guess {n}")
    assert len(door._authenticator._findings) == 8


def test_with_a_key_file_the_door_is_shut_and_its_keys_open_it(database, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"generate {FILE_KEY} acme\n")
    door = Door(database, key_file=KeyFile(path))
    _, secret = door.new_key()
    assert door.open(FILE_KEY).tenant == "acme"
    assert door.open(FILE_KEY).quota == DEFAULT
    assert door.open(secret).tenant is None
    assert door.refuses("")
