"""The `onebasis` command: serve, build a basis, fit or distill a task, run the demo."""

import typer
from pydantic import ValidationError

from onebasis import __version__
from onebasis.commands.adapters import export_command, import_command
from onebasis.commands.basis import basis_app
from onebasis.commands.console import complain, say
from onebasis.commands.distill import distill_command
from onebasis.commands.fit import fit_command
from onebasis.commands.inspect import inspect_command
from onebasis.commands.merge import merge_command
from onebasis.commands.mixing import basis_mix
from onebasis.commands.registry import registry_app
from onebasis.commands.report import report_command
from onebasis.commands.serve import serve_command
from onebasis.core.errors import ServeError
from onebasis.demo.commands import demo_app
from onebasis.identity.commands import keys_app

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command("serve")(serve_command())
basis_app.command("mix")(basis_mix)
app.add_typer(basis_app, name="basis")
app.command("fit")(fit_command)
app.command("import")(import_command)
app.command("export")(export_command)
app.command("distill")(distill_command)
app.command("merge")(merge_command)
app.command("inspect")(inspect_command)
app.command("report")(report_command)
app.add_typer(keys_app, name="keys")
app.add_typer(registry_app, name="registry")
app.add_typer(demo_app, name="demo")


@app.command()
def version() -> None:
    """Print the version."""
    say(__version__)


def main() -> None:
    """Entry point. Errors of the operator are one line on stderr and exit code 2."""
    try:
        app()
    except (ServeError, OSError) as error:
        complain(str(error))
        raise SystemExit(2) from None
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join(map(str, detail["loc"])) or "options"
            complain(f"{where}: {detail['msg']}")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
