"""`onebasis keys`: the road to the first key."""

import re
import sys

import pytest
from sqlalchemy import make_url

from onebasis import cli
from onebasis.identity.audit import AuditLog
from onebasis.identity.caller import Scope
from onebasis.identity.key_store import KeyStore
from onebasis.identity.keys import hash_key
from onebasis.storage.database import Database


@pytest.fixture
def run(monkeypatch, capsys, store_url):
    """Runs the command as a shell would: (exit code, stdout, stderr)."""

    def run(*args: str, store: str = store_url) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onebasis", "keys", *args, "--store", store])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def keys(store_url):
    database = Database(store_url)
    yield KeyStore(database)
    database.close()


def test_a_key_is_printed_alone_once_and_opens_what_was_asked_for(run, keys):
    code, out, err = run(
        "create", "--label", "ci", "--scope", "generate", "--scope", "register", "--tenant", "acme",
        "--expires-in-days", "1",
    )  # fmt: skip
    assert code == 0, err
    assert re.fullmatch(r"ob_[\w-]{43}\n", out), "a shell may take it from stdout"
    key = keys.find(hash_key(out.strip()))
    assert (key.label, key.scopes, key.tenant) == ("ci", {Scope.GENERATE, Scope.REGISTER}, "acme")
    assert key.expires_at - key.created_at == 24 * 3600
    assert key.id in err
    code, listed, _ = run("list")
    assert key.id in listed
    assert out.strip() not in listed + err


def test_keys_are_listed_with_their_state(run, keys):
    (_, admin, _), (_, other, _) = (
        run("create", "--label", "a", "--scope", "admin"),
        run("create", "--label", "b", "--scope", "generate"),
    )
    revoked = keys.find(hash_key(other.strip())).id
    assert run("revoke", revoked)[:2] == (0, f"revoked {revoked}\n")
    assert keys.find(hash_key(other.strip())).revoked_at is not None
    lines = run("list")[1].splitlines()
    assert re.search(r" a +│ admin +│ - +│ \d{4}-\d\d-\d\d │ valid", "\n".join(lines))
    assert any(revoked in line and "revoked 20" in line for line in lines)
    assert keys.find(hash_key(admin.strip())).revoked_at is None


def test_the_audit_log_says_that_it_was_the_command_line(run, store_url):
    run("create", "--label", "a", "--scope", "admin")
    database = Database(store_url)
    (entry,) = AuditLog(database).page(10)
    database.close()
    assert (entry.action, entry.key_id) == ("key.create", "cli")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["create", "--label", "x", "--scope", "admin", "--tenant", "acme"], "an admin key belongs to no tenant"),
        (["create", "--label", "x", "--scope", "generate", "--tenant", "a/b"], "tenant 'a/b': needs 1 to 128"),
        (["revoke", "key-none"], "no key has the id 'key-none'"),
    ],
)
def test_mistakes_are_one_line(run, args, complaint):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert complaint in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("args", [["create", "--label", "x"], ["create", "--label", "x", "--scope", "write"]])
def test_a_key_needs_a_scope_that_exists(run, args):
    code, _, err = run(*args)
    assert code == 2
    assert "--scope" in err


@pytest.mark.parametrize(
    "url", ["postgresql://u:hunter2@127.0.0.1:1/x", "postgresql//u:hunter2@h/x", "odd://u:hunter2@h/x"]
)
def test_a_store_that_can_not_be_opened_is_named_without_its_password(run, url):
    code, out, err = run("list", store=url)
    assert code == 2
    assert "hunter2" not in out + err
    assert "task store" in err


def test_the_password_of_a_store_that_works_is_not_shown(run, store_url):
    url = make_url(store_url)
    if url.drivername == "sqlite":
        pytest.skip("has no password")
    store = url.set(password="hunter2").render_as_string(hide_password=False)
    code, out, err = run("create", "--label", "x", "--scope", "admin", store=store)
    assert code == 0
    assert "hunter2" not in out + err
