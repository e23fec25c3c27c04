"""The `onebasis-client` command. Needs the extra `cli`: typer and rich."""


def main() -> None:
    """Entry point."""
    try:
        from onebasis_client.cli.app import app
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; the command needs the extra cli, typer and rich: pip install typer rich") from None
    app()
