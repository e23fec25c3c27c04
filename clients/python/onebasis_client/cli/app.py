"""The commands."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from onebasis_client.cli import access
from onebasis_client.cli.failures import ReportingGroup, exit_code_of_files
from onebasis_client.cli.output import Output
from onebasis_client.cli.session import Session, SessionContext, pairs
from onebasis_client.client import OneBasis
from onebasis_client.messages import Message
from onebasis_client.options import ChatOptions
from onebasis_client.reconcile import reconcile as reconcile_folder

app = typer.Typer(
    cls=ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 the server refused; 2 wrong usage, or a file that can't be read; 3 the server is "
    "busy or can't be reached, try later; 4 the server failed, or is no onebasis server.",
)
app.add_typer(access.keys_app, name="keys")
app.add_typer(access.quota_app, name="quota")
app.command()(access.audit)

TaskName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the task.")]
NewName = Annotated[str, typer.Option(help="Name of the task.")]
Metadata = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="To note beside the version; repeat for more.")
]
IfMatch = Annotated[str | None, typer.Option(metavar="DIGEST", help="Only if this is the current version.")]
IfAbsent = Annotated[bool, typer.Option("--if-absent", help="Only if the name is free.")]


@app.callback()
def connect(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="ONEBASIS_URL", help="Base URL, without /v1.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar="ONEBASIS_API_KEY", help="Better in the environment.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Longest silence of the server.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Use and manage the tasks of a onebasis server."""
    try:
        client = OneBasis(url, api_key=api_key, timeout_s=timeout_s)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    context.obj = Session(client, Output(as_json))
    context.call_on_close(client.close)


@app.command()
def push(
    context: SessionContext,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A *.coef.safetensors file.")],
    name: NewName,
    metadata: Metadata = None,
    if_match: IfMatch = None,
    if_absent: IfAbsent = False,
) -> None:
    """Register a coefficient file under a name."""
    noted = _noted(metadata)
    content = file.read_bytes()
    with _upload_bar() as progress:
        bar = progress.add_task(file.name, total=len(content))
        registration = context.obj.client.register(
            name,
            content,
            metadata=noted,
            if_match=if_match,
            if_absent=if_absent,
            on_sent=lambda n_bytes: progress.update(bar, completed=n_bytes),
        )
    what = "registered" if registration.created else "unchanged"
    context.obj.output.result(registration, f"{name}: {what}, {registration.task.digest}")


@app.command()
def reconcile(
    context: SessionContext,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Has NAME.coef.safetensors files.")],
    owner: Annotated[str, typer.Option(help="Noted with every version that is registered here.")] = "reconcile",
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete this owner's tasks that have no file any more.")
    ] = False,
) -> None:
    """Register every file of a folder whose task does not stand at it; a bad file is told and stops no other."""
    errors = []
    for outcome in reconcile_folder(context.obj.client, folder, owner=owner, prune=prune):
        context.obj.output.outcome(outcome)
        if outcome.error is not None:
            errors.append(outcome.error)
    if errors:
        raise typer.Exit(exit_code_of_files(errors))


@app.command()
def blend(
    context: SessionContext,
    parts: Annotated[list[str], typer.Argument(metavar="TASK=WEIGHT...", help="Such as plural=0.7 polite=0.3.")],
    name: NewName,
    metadata: Metadata = None,
    if_match: IfMatch = None,
    if_absent: IfAbsent = False,
) -> None:
    """Register the weighted sum of tasks, as they stand now, as a task."""
    registration = context.obj.client.store_blend(
        name, _weights(parts), metadata=_noted(metadata), if_match=if_match, if_absent=if_absent
    )
    what = "registered" if registration.created else "unchanged"
    context.obj.output.result(registration, f"{name}: {what}, {registration.task.digest}")


@app.command("list")
def list_tasks(context: SessionContext) -> None:
    """List all tasks."""
    context.obj.output.tasks(list(context.obj.client.tasks(page_size=1000)))


@app.command()
def show(context: SessionContext, name: TaskName) -> None:
    """Show a task."""
    context.obj.output.fields(context.obj.client.show(name))


@app.command()
def versions(context: SessionContext, name: TaskName) -> None:
    """List the versions of a task, newest first."""
    context.obj.output.versions(list(context.obj.client.versions(name, page_size=1000)))


@app.command()
def rollback(
    context: SessionContext,
    name: TaskName,
    digest: Annotated[str, typer.Argument(help="The version to go back to, as `versions` shows it.")],
    if_match: IfMatch = None,
) -> None:
    """Make an older version the current one again."""
    registration = context.obj.client.roll_back(name, digest, if_match=if_match)
    what = "rolled back" if registration.created else "unchanged"
    context.obj.output.result(registration, f"{name}: {what}, {registration.task.digest}")


@app.command()
def rm(
    context: SessionContext,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of tasks.")],
) -> None:
    """Delete tasks, one after another; the first that fails ends the command."""
    for name in names:
        context.obj.client.delete(name)
        context.obj.output.result({"id": name, "deleted": True}, f"{name}: deleted")


@app.command()
def chat(
    context: SessionContext,
    prompt: Annotated[str | None, typer.Argument(help="By default every line of stdin is one turn.")] = None,
    task: Annotated[str | None, typer.Option(help="Task, or task@sha256:...; by default the base model.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0: always the most likely token.")] = None,
) -> None:
    """Chat with a task; the answer is shown as it comes."""
    client, output = context.obj.client, context.obj.output
    model = client.models()[0].id if task is None else task
    options = ChatOptions()
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for turn in _turns(prompt):
        messages.append({"role": "user", "content": turn})
        if output.as_json:
            answer = client.chat(model, messages, **options)
            output.result(answer, answer.text)
            text = answer.text
        else:
            text = _spoken(client, model, messages, options)
        messages.append({"role": "assistant", "content": text})


@app.command()
def wait(
    context: SessionContext,
    timeout_s: Annotated[float, typer.Option(min=0.0, help="How long to try.")] = 60.0,
) -> None:
    """Wait until the server is ready."""
    with Console(stderr=True).status("waiting for the server"):
        context.obj.client.wait_until_ready(timeout_s)
    context.obj.output.result({"status": "ready"}, "ready")


def _noted(metadata: list[str] | None) -> dict[str, str] | None:
    """Nothing noted is another wish than an empty note."""
    return None if not metadata else pairs(metadata, "--metadata")


def _weights(parts: list[str]) -> dict[str, float]:
    given = pairs(parts, "TASK=WEIGHT")
    try:
        return {task: float(weight) for task, weight in given.items()}
    except ValueError as error:
        raise typer.BadParameter(f"a weight needs to be a number: {error}", param_hint="TASK=WEIGHT") from None


def _turns(prompt: str | None) -> Iterator[str]:
    if prompt is not None:
        yield prompt
        return
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def _spoken(client: OneBasis, model: str, messages: list[Message], options: ChatOptions) -> str:
    """The answer, shown piece by piece."""
    pieces = []
    with client.stream_chat(model, messages, **options) as chunks:
        for chunk in chunks:
            typer.echo(chunk.text, nl=False)
            pieces.append(chunk.text)
    typer.echo()
    return "".join(pieces)


def _upload_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,  # what stays on the screen is the result, or the one line that says what is wrong
    )
