"""Room on the interpreter's stack for all calls of a step.

CPython keeps the frames of Python functions in chunks of 16 KiB. A call that does not fit takes a new chunk from the
system, and gives it back when it returns: pages mapped, touched and unmapped, each time with an interrupt of every
other core that runs a thread of the process. The one function that vLLM's compilation makes of a model has a frame of
nearly a chunk, so that each of the hundreds of calls out of it may be such a one: a quarter of a step was seen.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Final, ParamSpec, TypeVar, cast

_N_SLOTS: Final = 16_384
"""Slots of 8 bytes. The chunk of such a frame is the next power of two: as much again is left for the calls in it."""

P = ParamSpec("P")
T = TypeVar("T")


def call_with_room(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns, called from a frame so large that the calls below it fit into its own chunk."""
    return cast(T, _roomy(function, *args, **kwargs))


def _call(function: Callable[..., object], *args: object, **kwargs: object) -> object:
    return function(*args, **kwargs)


_roomy: Final = FunctionType(_call.__code__.replace(co_stacksize=_N_SLOTS), {}, "call_with_room")
