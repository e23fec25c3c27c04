"""Where and with what a measurement was made."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("onebasis", "torch", "transformers", "httpx")


@dataclass(frozen=True, slots=True)
class Machine:
    """Versions are those of the Python that runs the load test; a server may run in another."""

    cpu: str
    n_cores: int
    n_cores_allowed: int  # by the affinity of this process
    load_average: tuple[float, float, float]  # 1, 5 and 15 minutes, before the first run
    system: str
    python: str
    packages: dict[str, str | None]  # None: not installed
    git_commit: str | None  # of HEAD; edits since then are not seen
    utc: str


def describe_machine(project: Path) -> Machine:
    """Facts of now. project is the folder that has `.git`."""
    return Machine(
        cpu=_cpu_model(),
        n_cores=os.cpu_count() or 0,
        n_cores_allowed=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        load_average=os.getloadavg(),
        system=platform.platform(),
        python=platform.python_version(),
        packages={package: _version(package) for package in PACKAGES},
        git_commit=git_commit(project / ".git"),
        utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def git_commit(git: Path) -> str | None:
    """Commit that HEAD names, read from the files of a git folder; None if they do not tell."""
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text(encoding="ascii").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)


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
