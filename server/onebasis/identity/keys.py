"""API keys: `ob_` and 256 random bits, shown once, kept as a hash.

The hash is one SHA-256, unsalted. Slow, salted hashes protect secrets that can be guessed; 256 random bits can't be,
and a slow hash would cost every request. That the hash also serves to find the row leaks nothing either: whoever
times the look-up learns about a hash prefix of a key of their own making, not about a key.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from onebasis.identity.caller import Scope

_PREFIX: Final = "ob_"
_N_RANDOM_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is kept. `id` is public; times are Unix seconds; `tenant` None: the operator's."""

    id: str
    key_hash: str
    label: str
    scopes: frozenset[Scope]
    tenant: str | None
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    def opens_with(self, key_hash: str, now: float) -> bool:
        """Whether a presented key's hash is this key's, and the key still counts. Constant time in the hash."""
        alive = self.revoked_at is None and (self.expires_at is None or now < self.expires_at)
        return hmac.compare_digest(self.key_hash, key_hash) and alive


def new_key() -> str:
    """A key that nobody has."""
    return _PREFIX + secrets.token_urlsafe(_N_RANDOM_BYTES)


def new_key_id() -> str:
    """A public name for a key."""
    return "key-" + secrets.token_hex(8)


def hash_key(key: str) -> str:
    """64 hex digits: what is kept of a key, and what it is found by."""
    return hashlib.sha256(key.encode()).hexdigest()
