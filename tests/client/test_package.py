"""The distribution: what importing it imports, what its README shows, and that both clients stay alike."""

import inspect
import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from onebasis_client import AsyncOneBasis, CannotConnect, ConnectionLost, OneBasis, api_errors
from tests.client.conftest import url_of

FOLDER = Path(__file__).parents[2] / "clients" / "python"
README = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("module", ["onebasis_client", "onebasis_client.cli.app"])
def test_importing_it_imports_little(module):
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    found = subprocess.run([sys.executable, "-I", "-c", _with_path(code)], capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert {"onebasis_client", "httpx"} <= loaded
    assert not loaded & {"onebasis", "torch", "numpy", "pydantic", "pydantic_core", "fastapi", "starlette"}


def test_the_library_works_without_the_commands_extra():
    code = "import sys; sys.modules['typer'] = sys.modules['rich'] = None; import onebasis_client"
    subprocess.run([sys.executable, "-I", "-c", _with_path(code)], check=True)


def test_the_command_without_its_extra_says_what_to_install():
    code = "import sys; sys.modules['typer'] = None; from onebasis_client.cli import main; main()"
    found = subprocess.run([sys.executable, "-I", "-c", _with_path(code)], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "pip install typer rich" in found.stderr


def test_the_command_ends_in_silence_when_nobody_reads_on(server):
    arguments = ["--json", "--url", url_of(server), "list"]
    code = f"from onebasis_client.cli import main; sys.argv[1:] = {arguments}; main()"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-I", "-c", _with_path(code)]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (found.returncode, found.stderr) == (1, "")


def test_it_requires_httpx_alone():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    assert [re.match(r"[a-z]+", requirement)[0] for requirement in project["dependencies"]] == ["httpx"]


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    sync, asynchronous = _signatures(OneBasis), _signatures(AsyncOneBasis)
    assert sync == asynchronous
    assert {"complete", "register", "tasks"} <= sync.keys()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("the connection broke", heard=True),
        CannotConnect("can't connect"),
        api_errors.QueueFull("full", status=429, param="p", request_id="r", retry_after_s=1.5),
        api_errors.RequestError("new", code="brand_new", status=418),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_goes_through_to_another_process_with_all_it_says(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def _signatures(cls: type) -> dict[str, list[tuple[str, object, object]]]:
    return {
        name: [(p.name, p.default, p.kind) for p in inspect.signature(method).parameters.values()]
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


@pytest.mark.parametrize("number", range(README.count("```python")))
def test_the_examples_of_the_readme_run(server, number, tmp_path):
    """As they stand, but for the address; they use a file plural.coef.safetensors and delete what they register."""
    (tmp_path / "plural.coef.safetensors").write_bytes(server.model.core_file(21))
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[number]
    assert "http://127.0.0.1:8000" in example
    script = tmp_path / "example.py"
    script.write_text(_with_path(example.replace("http://127.0.0.1:8000", url_of(server))))
    found = subprocess.run(
        [sys.executable, "-I", script.name], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()
    assert "plural" not in {card["id"] for card in server.client.get("/v1/models").json()["data"]}


def _with_path(code: str) -> str:
    return f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{code}"
