"""Bring a folder of coefficient files into the registry, one by one: a bad file never stops the others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from onebasis_client.api_errors import TaskNotFound
from onebasis_client.client import OneBasis
from onebasis_client.errors import CannotConnect, OneBasisError

SUFFIX: Final = ".coef.safetensors"
OWNER: Final = "reconciled_by"  # in the metadata of a version


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task.

    Attributes:
        state: `failed` leaves the task as it was.
        error: why it failed; None otherwise.
    """

    task: str
    state: Literal["registered", "unchanged", "deleted", "failed"]
    error: OneBasisError | OSError | None = None


def coefficient_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by the task they are for, `plural` for plural.coef.safetensors.

    Raises:
        OSError: the folder can't be read, or has no such file: then it is more likely the wrong one, or not mounted.
    """
    names = {path.name.removesuffix(SUFFIX): path for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIX)}
    if not names:
        raise FileNotFoundError(f"{folder} has no *{SUFFIX}; nothing was done")
    return names


def reconcile(client: OneBasis, folder: Path, *, owner: str, prune: bool) -> Iterator[Outcome]:
    """Register every file whose task does not stand at its bytes; yield what became of each, as it happens.

    Args:
        owner: noted with each version that is registered here.
        prune: then delete the tasks that this owner registered last and that have no file any more. Of a tenant's key
            these are the tenant's own, never the shared ones. Nothing is deleted when not one file could be registered.

    Raises:
        OSError: as `coefficient_files`.
        CannotConnect: there is no server, so the next file would not fare better.
        OneBasisError: the tasks could not be listed for pruning.
    """
    files = coefficient_files(folder)
    tenants = set()  # whose tasks this key writes: one, or none yet
    for task, path in files.items():
        try:
            registration = client.register(task, path.read_bytes(), metadata={OWNER: owner})
        except CannotConnect:
            raise
        except (OneBasisError, OSError) as error:
            yield Outcome(task, "failed", error)
        else:
            tenants.add(registration.task.tenant)
            yield Outcome(task, "registered" if registration.created else "unchanged")
    if prune:
        for found in list(client.tasks(page_size=1000)):
            if found.metadata.get(OWNER) == owner and found.tenant in tenants and found.id not in files:
                yield _delete(client, found.id, found.digest)


def _delete(client: OneBasis, task: str, digest: str) -> Outcome:
    """Only what was listed: who has replaced it since keeps it. Another run may have deleted it already."""
    try:
        client.delete(task, if_match=digest)
    except CannotConnect:
        raise
    except TaskNotFound:
        return Outcome(task, "deleted")
    except OneBasisError as error:
        return Outcome(task, "failed", error)
    return Outcome(task, "deleted")
