"""What the command shows: lines and tables for people, one JSON document for programs. All of it on stdout."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onebasis_client.access import ApiKey, AuditEntry
from onebasis_client.errors import ApiError
from onebasis_client.reconcile import Outcome
from onebasis_client.tasks import Task, Version

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ANY_WIDTH: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Output:
    """Shows results. `as_json`: as JSON."""

    as_json: bool

    def result(self, result: "DataclassInstance | dict[str, Any]", line: str) -> None:
        """One result, and what to say of it to people."""
        if self.as_json:
            _json(result if isinstance(result, dict) else asdict(result))
        else:
            say(line)

    def outcome(self, outcome: Outcome) -> None:
        """One task of many: a line, on stderr if it failed; or a line of JSON."""
        error = outcome.error
        if self.as_json:
            reason = None if error is None else str(error)
            code = error.code if isinstance(error, ApiError) else None
            _json({"task": outcome.task, "state": outcome.state, "reason": reason, "code": code})
            return
        why = "" if error is None else f": {message_of(error)}"
        say(f"{outcome.task}: {outcome.state}{why}", is_error=error is not None)

    def tasks(self, tasks: Sequence[Task]) -> None:
        """A table of tasks, or a JSON array."""
        if self.as_json:
            _json([asdict(task) for task in tasks])
            return
        table = _table("task", "digest", "form", "k", "bytes", "state", "created (UTC)")
        for task in tasks:
            k = "all" if task.k is None else str(task.k)
            _add(
                table,
                task.id,
                short(task.digest),
                task.form if task.residual is None else f"{task.form} + residual {task.residual.rank}",
                k,
                str(task.size_bytes),
                task.state,
                _time(task.created_at),
            )
        _show(table)

    def versions(self, versions: Sequence[Version]) -> None:
        """A table of a task's history, or a JSON array."""
        if self.as_json:
            _json([asdict(version) for version in versions])
            return
        table = _table("generation", "digest", "bytes", "created (UTC)", "metadata")
        for version in versions:
            noted = ", ".join(f"{key}={value}" for key, value in version.metadata.items())
            created = _time(version.created_at)
            _add(table, str(version.generation), version.digest, str(version.size_bytes), created, noted)
        _show(table)

    def keys(self, keys: Sequence[ApiKey]) -> None:
        """A table of keys, or a JSON array."""
        if self.as_json:
            _json([asdict(key) for key in keys])
            return
        table = _table("id", "label", "scopes", "tenant", "created (UTC)", "expires (UTC)", "revoked (UTC)")
        for key in keys:
            times = ("-" if at is None else _time(at) for at in (key.created_at, key.expires_at, key.revoked_at))
            _add(table, key.id, key.label, " ".join(key.scopes), key.tenant or "-", *times)
        _show(table)

    def audit(self, entries: Sequence[AuditEntry]) -> None:
        """A table of changes, or a JSON array."""
        if self.as_json:
            _json([asdict(entry) for entry in entries])
            return
        table = _table("id", "at (UTC)", "key", "tenant", "action", "subject", "digest", "request")
        for entry in entries:
            digest = "-" if entry.digest is None else short(entry.digest)
            who = (entry.key_id or "-", entry.tenant or "-")
            _add(
                table,
                str(entry.id),
                _time(entry.at),
                *who,
                entry.action,
                entry.subject,
                digest,
                entry.request_id or "-",
            )
        _show(table)

    def fields(self, thing: "DataclassInstance") -> None:
        """All there is to know of one thing, field by field."""
        if self.as_json:
            _json(asdict(thing))
            return
        table = Table(box=None, show_header=False)
        for name, value in asdict(thing).items():
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
            _add(table, name, _time(value) if name == "created_at" else shown)
        _show(table)


def message_of(error: Exception) -> str:
    """What it says, and the server's code if it has one."""
    return f"{error} [{error.code}]" if isinstance(error, ApiError) else str(error)


def say(text: str, *, is_error: bool = False) -> None:
    """A line for people, whole however narrow the terminal is. Errors go to stderr."""
    style = "red" if is_error else None
    Console(stderr=is_error).print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def short(digest: str) -> str:
    """Enough of a digest to tell it from others by eye."""
    return digest[:19]


def _json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _show(table: Table) -> None:
    """On a terminal as wide as that is; in a pipe or file a row is a line, however long, so that it can be searched."""
    console = Console()
    if not console.is_terminal:
        console.width = _ANY_WIDTH
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))  # as Text: what a file says about itself is no markup


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
