"""`onebasis registry`: back up and restore."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from onebasis.coefficients.backup import Copied, back_up, restore
from onebasis.core.config import DEFAULT_STORE
from onebasis.storage.database import Database

registry_app = typer.Typer(no_args_is_help=True, help="Back up and restore tasks, keys, quotas and the audit log.")

StoreOption = Annotated[str, typer.Option(help="URL of the registry.", envvar="ONEBASIS_STORE")]


@registry_app.command("backup")
def backup_command(
    file: Annotated[Path, typer.Argument(help="A new file to write.", dir_okay=False)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write tasks with all versions, hashed keys, quotas and audit log to one file; servers may go on meanwhile."""
    with closing(Database(store)) as database:
        copied = back_up(database, file)
    _tell(f"{file}: {_counts(copied)}, {file.stat().st_size} bytes", copied)


@registry_app.command("restore")
def restore_command(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.", dir_okay=False)],
    store: StoreOption = DEFAULT_STORE,
    replace: Annotated[bool, typer.Option("--replace", help="Drop what the registry holds.")] = False,
) -> None:
    """Bring a registry to what a backup holds; SQLite and PostgreSQL alike, wherever the backup is from."""
    with closing(Database(store)) as database:
        copied = restore(file, database, replace=replace)
    _tell(f"restored {_counts(copied)}", copied)


def _counts(copied: Copied) -> str:
    return f"{copied.n_files} files, {copied.n_versions} versions, {copied.n_keys} keys"


def _tell(text: str, copied: Copied) -> None:
    """The result on stdout; damaged files on stderr, with exit code 1."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    for digest in copied.damaged:
        Console(stderr=True).print(f"onebasis: the bytes of {digest} are damaged", style="red", highlight=False)
    if copied.damaged:
        raise typer.Exit(1)
