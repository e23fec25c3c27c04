"""Keys from a file: what a line may say, and what happens when the file changes under a running server."""

import pytest

from onebasis.identity.caller import Scope
from onebasis.identity.errors import InvalidKeyFile
from onebasis.identity.key_file import KeyFile, parse_key_file
from onebasis.identity.keys import hash_key
from tests.identity.builders import Clock

ONE = "ob_" + "1" * 43
TWO = "two-" + "2" * 43


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def test_a_line_is_scopes_key_and_perhaps_a_tenant(path):
    path.write_text(f"# of the cluster\n\ngenerate,register  {ONE}\tacme\n  admin {TWO}  \n")
    first, second = parse_key_file(path).values()
    assert (first.scopes, first.tenant) == ({Scope.GENERATE, Scope.REGISTER}, "acme")
    assert (second.scopes, second.tenant) == ({Scope.ADMIN}, None)
    assert first.opens_with(hash_key(ONE), 10**12)
    assert first.id != second.id


@pytest.mark.parametrize(
    "line",
    [
        "generate",
        ONE,
        f"generate {ONE} acme more",
        f"generate,write {ONE}",
        f"{ONE} generate",
        f", {ONE}",
        "generate " + "x" * 31,
        "generate " + "x" * 257,
        "generate " + "é" * 40,
        f"generate {ONE} a/b",
        f"admin {ONE} acme",
    ],
)
def test_a_wrong_line_is_named_and_never_shown(path, line):
    path.write_text(f"generate {TWO}\n{line}\n")
    with pytest.raises(InvalidKeyFile, match="line 2") as refusal:
        KeyFile(path)
    told = str(refusal.value)
    assert not any(word in told for word in (ONE, TWO, "xxx", "write", "a/b"))


def test_a_key_that_is_there_twice_is_refused(path):
    path.write_text(f"generate {ONE}\nregister {ONE}\n")
    with pytest.raises(InvalidKeyFile, match="line 2: this key is on an earlier line"):
        KeyFile(path)


@pytest.mark.parametrize("content", [b"\xff\xfe generate", b"#" * (4 * 1024 * 1024 + 1)])
def test_what_is_no_text_or_too_much_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InvalidKeyFile):
        KeyFile(path)


def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(InvalidKeyFile, match="No such file"):
        KeyFile(path)


def replace(path, content: str) -> None:
    """As Kubernetes does it: another file in the place of the first."""
    other = path.with_name("new")
    other.write_text(content)
    other.replace(path)


def test_a_changed_file_counts_after_a_second(path):
    clock = Clock()
    path.write_text(f"generate {ONE}\n")
    keys = KeyFile(path, clock)
    replace(path, f"generate {TWO}\n")
    clock.now_s += 1
    assert keys.find(hash_key(ONE)) is None
    assert keys.find(hash_key(TWO)) is not None


@pytest.mark.parametrize("broken", ["generate", None])
def test_a_file_that_became_wrong_leaves_the_keys_as_they_were(path, broken, caplog):
    clock = Clock()
    path.write_text(f"generate {ONE}\n")
    keys = KeyFile(path, clock)
    path.unlink()
    if broken is not None:
        path.write_text(broken)
    clock.now_s += 1
    assert keys.find(hash_key(ONE)) is not None
    assert "API keys stay as they were" in caplog.text
    replace(path, f"generate {TWO}\n")
    clock.now_s += 1
    assert keys.find(hash_key(ONE)) is None
