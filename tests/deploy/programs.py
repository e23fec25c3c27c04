"""The programs that `make deploy-test` fetches: helm, kubectl, promtool, hadolint, yamllint."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def run(program: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program of the deploy tools; whoever asks looks at the exit code."""
    found = shutil.which(program)
    assert found, f"no {program} on PATH; run 'make deploy-test', which fetches it"
    command: Sequence[str] = [found, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


def output_of(program: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """What a program prints, which must end well."""
    done = run(program, *arguments, cwd=cwd)
    assert done.returncode == 0, f"{program} {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    return done.stdout
