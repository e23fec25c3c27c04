"""The commands for admins: keys, quotas, the audit log."""

import time
from typing import Annotated, Final

import typer
from rich.console import Console

from onebasis_client.access import Limits, Scope
from onebasis_client.cli.session import SessionContext

keys_app = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke. Needs the scope admin.")
quota_app = typer.Typer(no_args_is_help=True, help="What a tenant may use: show, set. Needs the scope admin.")

Tenant = Annotated[str, typer.Argument(help="Name of the tenant.")]
Limit = Annotated[int | None, typer.Option(min=0, help="By default no limit.")]

_DAY_S: Final = 24 * 3600


@keys_app.command()
def create(
    context: SessionContext,
    label: Annotated[str, typer.Option(help="What it is for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; repeat for more.")],
    tenant: Annotated[str | None, typer.Option(help="Whose tasks are private to it; none: the operator's.")] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=36500, help="By default never.")] = None,
) -> None:
    """Make a key and print it, once: the server keeps only its hash."""
    expires_at = None if expires_in_days is None else int(time.time()) + expires_in_days * _DAY_S
    made = context.obj.client.create_key(label, scope, tenant=tenant, expires_at=expires_at)
    Console(stderr=True).print(f"made {made.id}; the key, which can't be shown again:", markup=False, highlight=False)
    context.obj.output.result(made, made.key)


@keys_app.command("list")
def list_keys(context: SessionContext) -> None:
    """All keys that were ever made."""
    context.obj.output.keys(list(context.obj.client.api_keys(page_size=1000)))


@keys_app.command()
def revoke(
    context: SessionContext, key_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]
) -> None:
    """Make a key open nothing any more; servers know within 2 s."""
    context.obj.client.revoke_key(key_id)
    context.obj.output.result({"id": key_id, "revoked": True}, f"{key_id}: revoked")


@quota_app.command("show")
def show_quota(context: SessionContext, tenant: Tenant) -> None:
    """Show a tenant's quota: its own, or the server's default."""
    context.obj.output.fields(context.obj.client.quota(tenant))


@quota_app.command("set")
def set_quota(
    context: SessionContext,
    tenant: Tenant,
    tasks: Limit = None,
    n_bytes: Annotated[int | None, typer.Option("--bytes", min=0, help="By default no limit.")] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrent_requests: Limit = None,
) -> None:
    """Replace all limits of a tenant; one that is left out does not limit."""
    limits: Limits = {
        "tasks": tasks,
        "bytes": n_bytes,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrent_requests": concurrent_requests,
    }
    context.obj.output.fields(context.obj.client.set_quota(tenant, **limits))


def audit(
    context: SessionContext,
    after: Annotated[int, typer.Option(min=0, metavar="ID", help="The last entry that is known.")] = 0,
) -> None:
    """List every change of a task, key or quota, oldest first. Needs the scope admin."""
    context.obj.output.audit(list(context.obj.client.audit(after, page_size=1000)))
