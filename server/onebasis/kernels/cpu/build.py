"""Compile the C++ sources once per machine and keep the library."""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

_log = logging.getLogger(__name__)
_SOURCES: Final = ("decoder.cpp", "linear.h", "residual.h", "attention.h", "team.h", "update.h", "vectors.h")
_FLAGS: Final = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-pthread", "-w")
_COMPILERS: Final = ("g++", "clang++", "c++")
_TIMEOUT_S: Final = 120


class CannotBuild(Exception):
    """There is no compiler, or it failed; the message says which."""


def build_library(folder: Path | None = None) -> Path:
    """Path of the compiled library; built now if this source, compiler and CPU were not seen before.

    Args:
        folder: where to keep it; by default the user's cache.

    Raises:
        CannotBuild
    """
    compiler = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    if compiler is None:
        raise CannotBuild(f"no C++ compiler found (looked for {', '.join(_COMPILERS)})")
    folder = folder or user_cache_path("onebasis") / "kernels"
    try:
        library = folder / f"decoder-{_identity(compiler)}.so"
        if not library.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, library)
    except (OSError, subprocess.SubprocessError) as error:
        raise CannotBuild(f"{compiler}: {error}") from error
    return library


def _compile(compiler: str, library: Path) -> None:
    with resources.as_file(resources.files(__package__) / "source") as source:
        handle, name = tempfile.mkstemp(dir=library.parent, suffix=".so")
        os.close(handle)
        command = [compiler, *_FLAGS, "-o", name, str(source / _SOURCES[0])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode != 0:
                raise CannotBuild(f"{' '.join(command)}: {done.stderr.strip()[:2000]}")
            Path(name).replace(library)  # whole or not at all, also when two servers start at once
        finally:
            Path(name).unlink(missing_ok=True)
    _log.info("compiled %s", library)


def _identity(compiler: str) -> str:
    """Digest of all that the library depends on."""
    state = hashlib.sha256()
    source = resources.files(__package__) / "source"
    for name in _SOURCES:
        state.update((source / name).read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_TIMEOUT_S, check=True).stdout
    state.update(version + " ".join((compiler, *_FLAGS, *cpu_flags())).encode())
    return state.hexdigest()[:16]


def cpu_flags() -> tuple[str, ...]:
    """What the CPU can do, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    return tuple(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))
