"""API keys in the database. A revoked key stays as a row: nobody gets its id again, and the server stays closed."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlalchemy import RowMapping, insert, select, update

from onebasis.core.errors import InvalidParameter
from onebasis.identity.audit import Action, Change, record
from onebasis.identity.caller import Caller, Scope, check_grant, parse_tenant
from onebasis.identity.errors import KeyNotFound
from onebasis.identity.keys import ApiKey, hash_key, new_key, new_key_id
from onebasis.identity.tables import KEYS
from onebasis.storage.database import Database


class KeyStore:
    """Any thread. `clock` gives Unix seconds. Every method raises StoreUnavailable when the database fails."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        author: Caller,
        *,
        label: str,
        scopes: frozenset[Scope],
        tenant: str | None = None,
        expires_at: int | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key: as it is kept, and the key itself, which is nowhere afterwards. Raises InvalidParameter."""
        now = int(self._clock())
        check_grant(scopes, tenant if tenant is None else parse_tenant(tenant))
        if expires_at is not None and expires_at <= now:
            raise InvalidParameter("expires_at", f"found {expires_at}, needs a Unix second after now, {now}")
        secret = new_key()
        key = ApiKey(new_key_id(), hash_key(secret), label, scopes, tenant, now, expires_at)
        with self._database.writing() as connection:
            connection.execute(insert(KEYS).values(_row(key)))
            record(connection, author, Change(Action.KEY_CREATE, key.id), now)
        return key, secret

    def revoke(self, author: Caller, key_id: str) -> None:
        """From now on the key opens nothing; once is enough. Raises KeyNotFound."""
        now = int(self._clock())
        with self._database.writing() as connection:
            row = connection.execute(select(KEYS.c.revoked_at).where(KEYS.c.id == key_id)).first()
            if row is None:
                raise KeyNotFound(key_id)
            if row.revoked_at is None:
                connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(revoked_at=now))
                record(connection, author, Change(Action.KEY_REVOKE, key_id), now)

    def page(self, limit: int, after: str | None = None) -> list[ApiKey]:
        """Up to `limit` keys by id, from the first behind `after`; revoked ones too."""
        found = select(*KEYS.c).order_by(KEYS.c.id).limit(limit)
        if after is not None:
            found = found.where(KEYS.c.id > after)
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(found).mappings()]

    def find(self, key_hash: str) -> ApiKey | None:
        """The key with this hash."""
        with self._database.reading() as connection:
            row = connection.execute(select(*KEYS.c).where(KEYS.c.key_hash == key_hash)).mappings().first()
        return None if row is None else _key(row)

    def has_any(self) -> bool:
        """Whether a key was ever made."""
        with self._database.reading() as connection:
            return connection.execute(select(KEYS.c.id).limit(1)).first() is not None


def _row(key: ApiKey) -> dict[str, Any]:
    return asdict(key) | {"scopes": ",".join(sorted(key.scopes))}


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(**{**row, "scopes": frozenset(map(Scope, row["scopes"].split(",")))})
