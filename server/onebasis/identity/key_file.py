"""API keys from a file, such as a mounted Kubernetes secret. One key a line:

    <scopes> <key> [<tenant>]        generate,register ob_Zk3... acme

Scopes are joined by commas; empty lines and lines that begin with # are skipped. A key has 32 to 256 visible ASCII
characters, all of them random (`openssl rand -hex 32`): it is hashed as fast as the generated ones.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Final

from onebasis.core.errors import InvalidParameter
from onebasis.identity.caller import check_grant, parse_scopes, parse_tenant
from onebasis.identity.errors import InvalidKeyFile
from onebasis.identity.keys import ApiKey, hash_key

_LOG: Final = logging.getLogger(__name__)
_KEY: Final = re.compile(r"[!-~]{32,256}")
_CHECK_AFTER_S: Final = 1.0
_MAX_FILE_BYTES: Final = 4 * 1024 * 1024


class KeyFile:
    """The keys of a file as it is now: a changed file counts within a second or two. Any thread.

    A file that has become unreadable or wrong leaves the keys as they were, and is complained about in the log: half
    of a file must neither lock everybody out nor let a removed key's neighbour in.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file. Raises InvalidKeyFile."""
        self._path = path
        self._clock = clock
        self._lock = Lock()
        self._stamp = self._stamp_now()
        self._keys = parse_key_file(path)
        self._checked_s = clock()

    def find(self, key_hash: str) -> ApiKey | None:
        """The key with this hash, if the file has it."""
        with self._lock:
            if self._clock() - self._checked_s >= _CHECK_AFTER_S:
                self._checked_s = self._clock()
                self._reread()
            return self._keys.get(key_hash)

    def _reread(self) -> None:
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._keys = parse_key_file(self._path)
                self._stamp = stamp
                _LOG.info("read %d API keys from %s", len(self._keys), self._path)
        except InvalidKeyFile as error:
            _LOG.error("API keys stay as they were: %s", error)

    def _stamp_now(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()  # of the target: Kubernetes replaces a secret by moving a link
        except OSError as error:
            raise InvalidKeyFile(f"API keys {self._path}: {error.strerror}; give a readable file") from error
        return found.st_ino, found.st_mtime_ns, found.st_size


def parse_key_file(path: Path) -> Mapping[str, ApiKey]:
    """The keys of a file, by hash. Raises InvalidKeyFile, which names the line and never shows it."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        lines = data.decode().splitlines()
    except OSError as error:
        raise InvalidKeyFile(f"API keys {path}: {error.strerror}; give a readable file") from error
    except UnicodeDecodeError:
        raise InvalidKeyFile(f"API keys {path}: not UTF-8 text; one key a line: <scopes> <key> [<tenant>]") from None
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidKeyFile(f"API keys {path}: more than {_MAX_FILE_BYTES} bytes; keep many keys in the store")
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                key = _parse_line(line)
            except InvalidParameter:
                raise InvalidKeyFile(
                    f"API keys {path}, line {number}: needs '<scopes> <key> [<tenant>]' with scopes of generate,"
                    f"register,admin, a key of 32 to 256 visible characters, and no tenant beside admin"
                ) from None
            if key.key_hash in keys:
                raise InvalidKeyFile(f"API keys {path}, line {number}: this key is on an earlier line; take one out")
            keys[key.key_hash] = key
    return keys


def _parse_line(line: str) -> ApiKey:
    words = line.split()
    if len(words) not in (2, 3) or not _KEY.fullmatch(words[1]):
        raise InvalidParameter("line", "wrong")
    scopes = parse_scopes(words[0].split(","))
    tenant = parse_tenant(words[2]) if len(words) == 3 else None
    check_grant(scopes, tenant)
    key_hash = hash_key(words[1])
    return ApiKey(f"file-{key_hash[:12]}", key_hash, "from a file", scopes, tenant, created_at=0)
