"""What tests do with a store: every task is shared, times are made up."""

from onebasis.coefficients.preconditions import NO_PRECONDITION
from onebasis.coefficients.store import StoredVersion, Written
from onebasis.core.ids import SHARED, digest_of


def put(store, name, data, precondition=NO_PRECONDITION, now=100, metadata=None) -> Written:
    return store.put(name, data, digest_of(data), precondition=precondition, now=now, metadata=metadata)


def by_name(tasks):
    """Of shared tasks."""
    assert {key.owner for key in tasks} <= {SHARED}
    return {key.name: version for key, version in tasks.items()}


def live(store) -> dict[str, StoredVersion]:
    return by_name(store.changes(None).tasks)


def n_versions(store) -> int:
    return store.changes(None).mark.change
