"""`onebasis keys ...`: API keys from the command line, where the first admin key comes from."""

import time
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from onebasis.core.config import DEFAULT_STORE
from onebasis.identity.caller import Caller, Scope
from onebasis.identity.key_store import KeyStore
from onebasis.identity.keys import ApiKey
from onebasis.storage.database import Database

keys_app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")

StoreOption = Annotated[str, typer.Option(help="URL of the registry.", envvar="ONEBASIS_STORE")]

_OPERATOR: Final = Caller(key_id="cli", tenant=None, scopes=frozenset({Scope.ADMIN}))
_DAY_S: Final = 24 * 3600
_PAGE: Final = 1000


@keys_app.command()
def create(
    label: Annotated[str, typer.Option(help="What it is for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; repeat for more.")],
    tenant: Annotated[str | None, typer.Option(help="Whose tasks are private to it; none: the operator's.")] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=36500, help="By default never.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    expires_at = None if expires_in_days is None else int(time.time()) + expires_in_days * _DAY_S
    with closing(Database(store)) as database:
        key, secret = KeyStore(database).create(
            _OPERATOR, label=label, scopes=frozenset(scope), tenant=tenant, expires_at=expires_at
        )
    Console(stderr=True).print(f"made {key.id}; the key, which can't be shown again:", markup=False, highlight=False)
    Console().print(secret, markup=False, highlight=False, soft_wrap=True)


@keys_app.command("list")
def list_keys(store: StoreOption = DEFAULT_STORE) -> None:
    """All keys that were ever made."""
    table = Table("id", "label", "scopes", "tenant", "created", "state")
    with closing(Database(store)) as database:
        keys = KeyStore(database)
        page = keys.page(_PAGE)
        while page:
            for key in page:
                scopes = " ".join(sorted(key.scopes))
                table.add_row(key.id, key.label, scopes, key.tenant or "-", _day(key.created_at), _state(key))
            page = keys.page(_PAGE, after=page[-1].id)
    Console().print(table)


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], store: StoreOption = DEFAULT_STORE
) -> None:
    """Make a key open nothing any more; servers know within 2 s."""
    with closing(Database(store)) as database:
        KeyStore(database).revoke(_OPERATOR, key_id)
    Console().print(f"revoked {key_id}", markup=False, highlight=False)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_day(key.revoked_at)}"
    if key.expires_at is None:
        return "valid"
    return f"{'valid until' if time.time() < key.expires_at else 'expired'} {_day(key.expires_at)}"


def _day(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).date().isoformat()
