"""The schema of a database: from whatever an earlier version left to the newest revision."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

_FOLDER: Final = Path(__file__).parent / "migrations"
_FIRST_REVISION: Final = "0001"
_FIRST_TABLE: Final = "coefficient_files"


class UnknownRevision(Exception):
    """The database is at a revision that this program does not have. Never leaves the package."""

    def __init__(self, *, found: str, newest: str) -> None:
        super().__init__(f"its schema is at revision {found}, which this program, at {newest}, does not know")


def migrate(connection: Connection) -> None:
    """Bring the schema to the newest revision, within the transaction that is open on `connection`.

    Tables without a revision number are those of version 0.1.0: they are adopted as they are. The caller holds
    the lock that keeps other writers out. Not for several threads at once: alembic keeps its context in globals.

    Raises:
        UnknownRevision: a newer program has been at this database; nothing was changed.
    """
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    newest = scripts.get_current_head()
    found = MigrationContext.configure(connection).get_current_revision()
    if found == newest:
        return
    if found is None and inspect(connection).has_table(_FIRST_TABLE):
        command.stamp(config, _FIRST_REVISION)
    elif found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise UnknownRevision(found=found, newest=str(newest))
    command.upgrade(config, "head")
