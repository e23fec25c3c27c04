"""Identities are spelt in one way only."""

import hashlib
from pathlib import Path

import pytest

from onebasis.core.errors import InvalidDigest, InvalidTaskName
from onebasis.core.ids import digest_of, digest_of_file, parse_digest, parse_task_name

HEX = hashlib.sha256(b"abc").hexdigest()


def test_a_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert digest_of(b"abc") == digest_of_file(path) == f"sha256:{HEX}"
    assert digest_of(b"") != digest_of(b"\0")


def test_a_digest_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        digest_of_file(tmp_path / "nowhere")


def test_a_digest_is_parsed_as_it_was_made() -> None:
    assert parse_digest(digest_of(b"abc")) == digest_of(b"abc")


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"SHA256:{HEX}",
        f"sha512:{HEX}",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        f"sha256:{'g' * 64}",
        "sha256:" + "\N{ARABIC-INDIC DIGIT ONE}" * 64,
        "sha256:" + "0" * 10_000,
    ],
)
def test_another_spelling_of_a_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest) as refusal:
        parse_digest(text)
    assert len(str(refusal.value)) < 300, "a stranger's text fills the log"


@pytest.mark.parametrize("name", ["a", "7", "date_iso", "a.b-c_D", "x" * 128])
def test_a_task_name_stays_as_it_is(name: str) -> None:
    assert parse_task_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "-a",
        "_a",
        ".a",
        "a b",
        "a/b",
        "a\\b",
        "a@b",
        "a:b",
        "a%2f",
        "a\n",
        "\na",
        "é",
        "a\0",
        "x" * 129,
    ],
)
def test_another_spelling_of_a_task_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidTaskName) as refusal:
        parse_task_name(name)
    assert "needs 1 to 128 of letters, digits" in str(refusal.value)
    assert len(str(refusal.value)) < 300
