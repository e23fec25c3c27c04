from dataclasses import dataclass

import numpy as np
import pytest
import torch

from onebasis.coefficients.residual_cache import ResidualCache
from onebasis.core.errors import ResidualMemoryFull
from onebasis.core.residual import Residual

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """Coefficients of which the cache sees a residual of 10 numbers for each unit of size."""

    digest: str
    size: int = 1

    @property
    def residual(self):
        return {"site": Residual(np.ones((self.size, 4), np.float16), np.ones((6, self.size), np.float16))}


def cache_of(n_units: int) -> ResidualCache:
    return ResidualCache(limit_bytes=n_units * 10 * 4, dtype=torch.float32, device=CPU)


def use(cache: ResidualCache, task: Task):
    held = cache.acquire(task)
    cache.release(task)
    cache.check_integrity()
    return held


def test_what_nobody_uses_stays_until_its_memory_is_needed():
    cache = cache_of(2)
    first = use(cache, Task("a"))
    assert use(cache, Task("a")) is first
    use(cache, Task("b"))
    assert cache.size_bytes == cache.limit_bytes
    use(cache, Task("c"))
    assert use(cache, Task("b")), "a was used longest ago"
    assert cache.size_bytes == cache.limit_bytes
    assert use(cache, Task("a")) is not first


def test_a_large_one_takes_the_place_of_several_small_ones():
    cache = cache_of(3)
    for name in "abc":
        use(cache, Task(name))
    kept = cache.acquire(Task("c"))
    use(cache, Task("large", size=2))
    assert cache.size_bytes == 3 * 40
    assert cache.acquire(Task("c")) is kept


def test_those_in_use_are_never_evicted_and_a_refusal_changes_nothing():
    cache = cache_of(2)
    cache.acquire(Task("a"))
    cache.acquire(Task("a"))
    cache.release(Task("a"))
    idle = use(cache, Task("b"))
    with pytest.raises(
        ResidualMemoryFull, match="needs 80 bytes, those of running requests take 40 of the 80 there are"
    ):
        cache.acquire(Task("c", size=2))
    cache.check_integrity()
    assert use(cache, Task("b")) is idle
    cache.release(Task("a"))
    use(cache, Task("c", size=2))
    assert cache.size_bytes == 80


def test_release_without_acquire_is_a_bug_of_the_caller():
    with pytest.raises(KeyError):
        cache_of(1).release(Task("a"))
