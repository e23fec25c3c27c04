"""names.py lists what the plugin takes from vLLM; that an installed vLLM has it is in tests/vllm."""

import ast
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import onebasis.engine
import onebasis.vllm_plugin
from onebasis.core.errors import UnsupportedVllm
from onebasis.vllm_plugin.names import USED, Name, missing_names
from onebasis.vllm_plugin.versions import SUPPORTED, check_release

FOLDERS = (Path(onebasis.vllm_plugin.__file__).parent, Path(onebasis.engine.__file__).parent / "vllm")


def imported_from_vllm() -> set[str]:
    """As "module:name", of all modules of the plugin and the engine."""
    found = set()
    for path in (path for folder in FOLDERS for path in folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "vllm":
                found |= {f"{node.module}:{alias.name}" for alias in node.names}
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "vllm" for alias in node.names), f"{path.name}: name it"
    return found


def test_every_import_from_vllm_is_listed():
    listed = {name.path.split(".weight_loader")[0].split(".apply")[0] for name in USED}
    assert imported_from_vllm() <= listed
    assert {"vllm.v1.worker.gpu_worker:Worker", "vllm.v1.engine.async_llm:AsyncLLM"} <= imported_from_vllm()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (Name("json:dumps", "", parameters=("obj",)), None),
        (Name("json:dumps", "", parameters=("text",)), "json:dumps(text), which has obj"),
        (Name("json:JSONEncoder.encode", "", parameters=("self", "o")), None),
        (Name("json:JSONEncoder.gone", ""), "json:JSONEncoder.gone"),
        (Name("no_such_module:name", ""), "no_such_module:name"),
        (Name("onebasis.vllm_plugin.names:Name", "", fields=("path", "why")), None),
        (Name("onebasis.vllm_plugin.names:Name", "", fields=("path", "gone")), "onebasis.vllm_plugin.names:Name.gone"),
    ],
)
def test_a_name_that_moved_is_told(name, problem):
    assert missing_names([name]) == ([] if problem is None else [problem])


@pytest.mark.parametrize("found", ["0.31.4", "0.33.0", "1.0.0", "0.3.2", "0.320.0"])
def test_a_release_that_was_not_tested_is_refused(found):
    with pytest.raises(UnsupportedVllm, match=rf"vLLM {found} is installed, this onebasis works with 0\.32\.\*"):
        check_release(found)


@pytest.mark.parametrize("found", [f"{SUPPORTED[0]}.0", f"{SUPPORTED[0]}.9+cpu"])
def test_patch_releases_are_taken(found):
    check_release(found)


def test_the_extra_asks_for_the_releases_that_are_taken():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (vllm,) = map(Requirement, project["optional-dependencies"]["vllm"])
    assert {
        f"{major}.{minor}" for major in (0, 1) for minor in range(100) if f"{major}.{minor}.1" in vllm.specifier
    } == {*SUPPORTED}
