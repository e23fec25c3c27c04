"""deploy/README.md: its links lead somewhere, its commands and values exist."""

import base64
import re
import shlex
import subprocess

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


@pytest.mark.parametrize("what", ["backup", "restore"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_backup_or_restore_that_fails_says_so(what, code, tmp_path):
    """Whoever runs it every night looks at the exit code."""
    (script,) = re.findall(rf"sh -c '([^']*onebasis registry {what} [^']*)'", TEXT)
    program(tmp_path / "onebasis", f"touch {tmp_path}/b; exit {code}")
    done = shell(script.replace("/tmp/b", f"{tmp_path}/b"), tmp_path)
    assert done.returncode == code
    assert not (tmp_path / "b").exists()


def test_rotating_a_key_keeps_the_lines_of_all_others(tmp_path):
    (block,) = re.findall(r"## Rotate keys.*?```sh\n(.*?)```", TEXT, re.DOTALL)
    secret = {"client-key": "old", "api-keys": "generate,register old\ngenerate tenants-own acme"}
    for name, text in secret.items():
        (tmp_path / f"jsonpath={{.data.{name}}}").write_text(base64.b64encode(text.encode()).decode())
    program(
        tmp_path / "kubectl",
        f'''case "$*" in
        *"get secret"*) for word in "$@"; do :; done; cat "{tmp_path}/$word" ;;
        *create*) printf "%s\\0" "$@" > {tmp_path}/created ;;
        esac''',
    )
    program(tmp_path / "openssl", "echo new")
    shell(block, tmp_path)
    given = (tmp_path / "created").read_text().split("\0")
    assert "--from-literal=client-key=new" in given
    assert f"--from-literal=api-keys={secret['api-keys']}\ngenerate,register new" in given


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def shell(script, folder):
    """Run it with the programs of a folder before all others."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    command = ["sh", "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


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
