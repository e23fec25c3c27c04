"""The compiled library, where this machine can have it."""

import pytest

from onebasis.kernels.cpu.build import CannotBuild, build_library, cpu_flags
from onebasis.kernels.cpu.library import NEEDED_CPU_FLAGS, Library


def native_library() -> Library:
    """Skips the test on a machine without a compiler or such a CPU: the server uses torch there."""
    missing = [flag for flag in NEEDED_CPU_FLAGS if flag not in cpu_flags()]
    if missing:
        pytest.skip(f"the CPU lacks {missing}")
    try:
        return Library(build_library())
    except CannotBuild as error:
        pytest.skip(str(error))
