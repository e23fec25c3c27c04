"""How much a tenant may use."""

from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one tenant; None: no limit.

    `tasks` and `bytes` bound what is registered and are exact: the store checks them in the transaction that adds.
    `bytes` counts every stored version that can still be named; deleting a task frees all of its versions.
    The others bound the use of each replica on its own; N replicas allow N times as much.
    """

    tasks: int | None = None
    bytes: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


UNLIMITED: Final = Quota()
QUOTA_NAMES: Final = tuple(field.name for field in fields(Quota))
