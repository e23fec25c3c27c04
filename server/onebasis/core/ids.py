"""Identities: digests of files, names of tasks, the slot that means "base model alone"."""

import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple, NewType

from onebasis.core.errors import InvalidDigest, InvalidTaskName

BASE_SLOT: Final = -1

Digest = NewType("Digest", str)
"""`sha256:<64 hex digits>` of a file's bytes: the identity of a basis or of coefficients, everywhere."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


SHARED: Final = ""
"""The owner of tasks that all tenants see."""


class TaskKey(NamedTuple):
    """A task: two tenants may use one name for two tasks. `owner` is a tenant or SHARED."""

    owner: str
    name: str


def digest_of(data: bytes) -> Digest:
    """Identity of these bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_of_file(path: Path) -> Digest:
    """Identity of a file's bytes, read in pieces. Raises OSError if it can't be read."""
    with path.open("rb") as file:
        return Digest("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())


def parse_digest(text: str) -> Digest:
    """Check the spelling of a digest. Raises InvalidDigest."""
    if not _DIGEST.fullmatch(text):
        raise InvalidDigest(found=text)
    return Digest(text)


def parse_task_name(text: str) -> str:
    """Check the spelling of a task name. Raises InvalidTaskName."""
    if not _TASK_NAME.fullmatch(text):
        raise InvalidTaskName(found=text)
    return text
