"""A file is written whole or not at all, and what can't be written is refused before the work."""

import os
from pathlib import Path

import pytest

from onebasis.core.errors import SetupError
from onebasis.fitting.files import check_folder, check_output, write_whole


def test_missing_folders_are_made_and_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "er" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_who_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    """As a server that has mapped a basis: cut in place, it would die at the next page."""
    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    with path.open("rb") as reader:
        write_whole(path, b"new")
        assert reader.read() == b"as it was"


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"as it was")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"one")
    link.symlink_to(path)
    write_whole(link, b"two")
    assert link.is_symlink()
    assert path.read_bytes() == b"two"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(path, b"bytes")
    assert os.read(reader, 9) == b"bytes"
    os.close(reader)
    assert path.is_fifo()


def test_outputs_that_can_not_be_are_refused(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"")
    other.symlink_to(file)
    check_output(file, tmp_path / "missing", tmp_path)
    check_output(tmp_path / "new" / "er" / "file", file)
    with pytest.raises(SetupError, match=f"output {tmp_path}: is a folder; name a file"):
        check_output(tmp_path)
    with pytest.raises(SetupError, match=f"output {other}: this command reads that file; name another one"):
        check_output(other, tmp_path / "missing", file)
    with pytest.raises(SetupError, match=f"output folder {file}/new: {file} is no folder that can be written to"):
        check_output(file / "new" / "file")
    assert sorted(tmp_path.iterdir()) == [file, other], "nothing is made by asking"


def test_a_folder_that_can_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "new")
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # who runs tests as root may write anywhere
    with pytest.raises(SetupError, match=f"{tmp_path} is no folder that can be written to"):
        check_folder(tmp_path / "new")
