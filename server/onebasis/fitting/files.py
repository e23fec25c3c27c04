"""Files that commands write: whole or not at all, and refused before the work where they can't be."""

import os
from pathlib import Path

from onebasis.core.errors import SetupError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one move; a missing folder is made.

    Who reads `path` finds what was there before or all of `data`, also after an interruption. A server that has the
    old file mapped goes on with it.

    Raises:
        OSError: it can't be written; what was there stays.
    """
    path = path.resolve()  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # a pipe or a device, which nothing should replace
        return
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def check_output(path: Path, *read: Path) -> None:
    """Refuse a file to write before anything is computed for it.

    Args:
        read: files that the same command reads.

    Raises:
        SetupError: it is a folder, one of the files that are read, or in no folder that can be written to.
    """
    if path.is_dir():
        raise SetupError(f"output {path}: is a folder; name a file")
    if path.exists() and any(other.exists() and path.samefile(other) for other in read):
        raise SetupError(f"output {path}: this command reads that file; name another one")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raises SetupError for a folder that can neither be written to nor made."""
    folder = folder.absolute()
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise SetupError(f"output folder {folder}: {there} is no folder that can be written to; name another one")
