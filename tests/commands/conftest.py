"""The `onebasis` command run in this process, and one tiny model for all commands."""

import sys
from collections.abc import Callable

import pytest

from onebasis import cli
from tests.api.tiny_model import TinyModel, save_tiny_model
from tests.commands.result import Result


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def onebasis(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], process_as_before: None
) -> Callable[..., Result]:
    """Runs the command's entry point, as a shell would; 200 columns wide."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["onebasis", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(end.value.code or 0), captured.out, captured.err)

    return run
