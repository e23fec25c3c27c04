"""Where and with what a measurement was made."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("onebasis", "torch", "transformers", "httpx", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """Versions are those of the Python that runs the benchmark; a server may run in another."""

    cpu: str
    n_cores: int
    n_cores_allowed: int  # by the affinity of this process
    load_average: tuple[float, float, float]  # 1, 5 and 15 minutes, before the first run
    system: str
    python: str
    packages: dict[str, str | None]  # None: not installed
    git_commit: str | None  # of HEAD, "-dirty" behind it if there were edits since; None outside of git
    utc: str


def describe_machine() -> Machine:
    """Facts of now."""
    return Machine(
        cpu=_cpu_model(),
        n_cores=os.cpu_count() or 0,
        n_cores_allowed=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        load_average=os.getloadavg(),
        system=platform.platform(),
        python=platform.python_version(),
        packages={package: _version(package) for package in PACKAGES},
        git_commit=git_commit(PROJECT),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def git_commit(folder: Path) -> str | None:
    """The commit that the files of a folder are at."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
