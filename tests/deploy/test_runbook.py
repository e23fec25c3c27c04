"""deploy/README.md: its links lead somewhere, its commands and values exist."""

import re
import shlex

import pytest
import yaml

from tests.deploy.command_lines import resolve
from tests.deploy.programs import DEPLOY, ROOT, run
from tests.deploy.rendering import CHART
from tests.deploy.test_monitoring import ALERTS, anchors

TEXT = (DEPLOY / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_links_lead_somewhere(link):
    path, _, anchor = link.partition("#")
    target = DEPLOY / path if path else DEPLOY / "README.md"
    assert target.exists()
    assert not anchor or anchor in anchors(target.read_text())


def test_every_alert_is_explained():
    assert set(re.findall(r"`(Onebasis\w+)`", TEXT)) == ALERTS.keys()


def test_it_is_installed_in_five_commands():
    block = re.search(r"## Install in five commands.*?```sh\n(.*?)```", TEXT, re.DOTALL)
    assert len(block[1].splitlines()) == 5


def test_our_commands_exist():
    # Up to where the shell goes on; behind `kubectl -n onebasis exec` as well.
    found = re.findall(r"(?<![\w/-])(?=(onebasis(?:-client)? [^|;)<>`'&\n]+))", TEXT)
    groups = ("onebasis-client ", "onebasis registry ", "onebasis keys ")
    ours = [text.removesuffix(" ...").split() for text in found if text.startswith(groups)]
    assert len(ours) >= 8
    for words in ours:
        resolve(words)


def test_files_that_commands_name_exist():
    named = {word for line in LINES for word in re.findall(r"(?<![\w/.-])deploy/[\w/.-]+", line)}
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_values_that_it_names_exist():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]
    heads = "|".join(values)
    named = set(re.findall(rf"`((?:{heads})(?:\.\w+)+)(?=[`:])", TEXT))
    assert len(named) > 15
    for name in named:
        part = {"properties": schema}
        for word in name.split("."):
            assert word in part["properties"], name
            part = part["properties"][word]


def test_the_refusal_that_it_shows_is_what_helm_says():
    command, shown = re.search(r"\$ (helm template .*)\n(.*)\n", TEXT).groups()
    done = run(*shlex.split(command))
    assert done.returncode != 0
    assert shown in done.stderr
