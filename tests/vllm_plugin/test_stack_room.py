"""Calls in a step must not fetch memory for their frames, however deep on the stack the step begins."""

import resource
from types import FunctionType

from onebasis.vllm_plugin.stack_room import call_with_room

N_CALLS = 200
N_DEPTHS = 200  # of frames of some 100 bytes: more than the 16 KiB of a chunk


def test_some_depth_makes_every_call_fetch_memory() -> None:
    assert max(_faults_by_depth(call_from_here=True)) >= N_CALLS


def test_no_depth_does_with_room() -> None:
    assert max(_faults_by_depth(call_from_here=False)) < N_CALLS / 4


def _faults_by_depth(*, call_from_here: bool) -> list[int]:
    def descend(depth: int) -> int:
        if depth:
            return descend(depth - 1)
        return _faults() if call_from_here else call_with_room(_faults)

    return [descend(depth) for depth in range(N_DEPTHS)]


def _faults() -> int:
    """Page faults of many calls after each other."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(N_CALLS):
        _leaf()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


_leaf = FunctionType((lambda: None).__code__.replace(co_stacksize=64), {})  # a frame that no step of depth jumps over
