"""What each tenant may use: a row of its own, or the server's default."""

import time
from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import delete, insert, select

from onebasis.identity.audit import Action, Change, record
from onebasis.identity.caller import Caller, parse_tenant
from onebasis.identity.quota import QUOTA_NAMES, Quota
from onebasis.identity.tables import QUOTAS
from onebasis.storage.database import Database


class QuotaStore:
    """Any thread. Every method raises StoreUnavailable when the database fails."""

    def __init__(self, database: Database, default: Quota, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._default = default
        self._clock = clock

    def of(self, tenant: str) -> Quota:
        """The tenant's limits; the default where it has none of its own."""
        found = select(*(QUOTAS.c[name] for name in QUOTA_NAMES)).where(QUOTAS.c.tenant == tenant)
        with self._database.reading() as connection:
            row = connection.execute(found).mappings().first()
        return self._default if row is None else Quota(**row)

    def put(self, author: Caller, tenant: str, quota: Quota) -> None:
        """Replace all of the tenant's limits; the default counts no longer for it. Raises InvalidParameter."""
        parse_tenant(tenant)
        with self._database.writing() as connection:
            connection.execute(delete(QUOTAS).where(QUOTAS.c.tenant == tenant))
            connection.execute(insert(QUOTAS).values(tenant=tenant, **asdict(quota)))
            record(connection, author, Change(Action.QUOTA_SET, tenant), int(self._clock()))
