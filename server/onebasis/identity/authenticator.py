"""From the key that a request presents to its Caller, mostly from memory."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Final

from onebasis.core.errors import StoreUnavailable
from onebasis.identity.caller import OPERATOR, Caller
from onebasis.identity.errors import InvalidApiKey
from onebasis.identity.key_file import KeyFile
from onebasis.identity.key_store import KeyStore
from onebasis.identity.keys import ApiKey, hash_key
from onebasis.identity.quota import UNLIMITED, Quota
from onebasis.identity.quota_store import QuotaStore

_LOG: Final = logging.getLogger(__name__)
_FRESH_S: Final = 1.0
_GRACE_S: Final = 60.0
_MAX_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Finding:
    """What the stores said of one presented key. `read_s`, `retry_s`: when, and when to ask again (monotonic)."""

    key: ApiKey | None
    quota: Quota
    needs_key: bool
    read_s: float
    retry_s: float


class Authenticator:
    """Any thread. Remembers each answer for a second, so a revoked key is out everywhere within two.

    While the database does not answer, what it said last counts for a minute: an outage of the store must not end
    requests that need nothing of it. Bounded: of the remembered keys, the oldest are forgotten first.
    """

    def __init__(
        self,
        keys: KeyStore,
        quotas: QuotaStore,
        *,
        key_file: KeyFile | None,
        needs_key: bool,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            needs_key: even if no key was ever made. With a key file it is always so.
        """
        self._keys = keys
        self._quotas = quotas
        self._key_file = key_file
        self._needs_key = needs_key or key_file is not None
        self._clock = clock
        self._monotonic = monotonic
        self._lock = Lock()
        self._findings: dict[str, Finding] = {}

    def recent(self, presented: str) -> Finding | None:
        """What is remembered of a key and still fresh. No I/O."""
        finding = self._findings.get(hash_key(presented))
        return finding if finding is not None and self._monotonic() < finding.retry_s else None

    def look_up(self, presented: str) -> Finding:
        """Ask the stores about a key; "" for none. Raises StoreUnavailable."""
        key_hash = hash_key(presented)
        now_s = self._monotonic()
        try:
            finding = self._read(key_hash, now_s)
        except StoreUnavailable as error:
            last = self._findings.get(key_hash)
            if last is None or now_s - last.read_s > _GRACE_S:
                raise
            _LOG.warning("keys are used as they were %.0f s ago: %s", now_s - last.read_s, error)
            finding = Finding(last.key, last.quota, last.needs_key, last.read_s, now_s + _FRESH_S)
        with self._lock:
            self._findings.pop(key_hash, None)
            self._findings[key_hash] = finding
            while len(self._findings) > _MAX_REMEMBERED:
                del self._findings[next(iter(self._findings))]
        return finding

    def caller(self, presented: str, finding: Finding, request_id: str | None = None) -> Caller:
        """Who presents this key. No I/O. Raises InvalidApiKey."""
        key = finding.key
        if key is None and not finding.needs_key:
            return Caller(OPERATOR.key_id, OPERATOR.tenant, OPERATOR.scopes, OPERATOR.quota, request_id)
        if key is None or not key.opens_with(hash_key(presented), self._clock()):
            raise InvalidApiKey(given=presented != "")
        return Caller(key.id, key.tenant, key.scopes, finding.quota, request_id)

    def _read(self, key_hash: str, now_s: float) -> Finding:
        key = self._key_file.find(key_hash) if self._key_file is not None else None
        if key is None:
            key = self._keys.find(key_hash)
        needs_key = self._needs_key or key is not None or self._keys.has_any()
        quota = UNLIMITED if key is None or key.tenant is None else self._quotas.of(key.tenant)
        return Finding(key, quota, needs_key, now_s, now_s + _FRESH_S)
