"""How often a request finds its task in the arena of the replica that it is sent to, under a Zipf load."""

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np

from onebasis.coefficients.slots import SlotTable
from onebasis.core.ids import Digest, digest_of

HASH_BOUND: Final = 1.25
"""Of consistent hashing with bounded loads (arXiv 1608.01350): most requests of a replica over the mean."""
_AFFINITY: Final = 0.2
"""The picker's: 1.0 where the task is at work against 0.8 where there is room, beside 1 for the load."""

Route = Callable[[int, Sequence[int], Sequence[Counter[int]], random.Random], int]
"""(task, requests of each replica, tasks at work on each, chance) -> replica."""


@dataclass(frozen=True, slots=True)
class Routed:
    """`hit_rate`: of requests that found their task in the arena. `peak`: the requests of the busiest replica over
    those of the mean one, the median over time.
    """

    policy: str
    n_tasks: int
    n_slots: int
    hit_rate: float
    peak: float


def by_chance(_task: int, loads: Sequence[int], _at_work: Sequence[Counter[int]], rng: random.Random) -> int:
    """Any replica."""
    return rng.randrange(len(loads))


def by_picker(task: int, loads: Sequence[int], at_work: Sequence[Counter[int]], _rng: random.Random) -> int:
    """The picker's scores: fewest requests, unless one that has the task at work has hardly more."""
    least, most = min(loads), max(loads)
    room = max(1, most - least)

    def score(replica: int) -> float:
        return (most - loads[replica]) / room + _AFFINITY * (task in at_work[replica])

    return max(range(len(loads)), key=score)


def by_hash(task: int, loads: Sequence[int], _at_work: Sequence[Counter[int]], _rng: random.Random) -> int:
    """The task's own replica, or the next one that is not too busy: consistent hashing with bounded loads."""
    n = len(loads)
    bound = ceil(HASH_BOUND * (sum(loads) + 1) / n)
    first = int(digest_of(task.to_bytes(8, "little"))[-8:], 16) % n
    return next(replica for replica in ((first + step) % n for step in range(n)) if loads[replica] < bound)


POLICIES: Final[dict[str, Route]] = {"chance": by_chance, "picker": by_picker, "hash": by_hash}


def simulate(
    policy: str, *, n_tasks: int, n_slots: int, n_replicas: int, per_replica: int, n_requests: int, a: float, seed: int
) -> Routed:
    """So many requests, of which the second half counts; each begins as another, drawn by chance, ends.

    Args:
        per_replica: requests under way on a replica on average, all the time.
        a: of Zipf: task number i is asked for with a probability proportional to (i + 1) ** -a.
    """
    rng = random.Random(seed)
    tables = _warm(n_tasks, n_slots, n_replicas)
    loads = [0] * n_replicas
    at_work: list[Counter[int]] = [Counter() for _ in range(n_replicas)]
    open_requests: list[tuple[int, int]] = []
    n_hits, peaks = 0, deque[float]()
    tasks = zipf(n_tasks, a, n_requests, seed)
    for number, task in enumerate(tasks):
        if len(open_requests) == n_replicas * per_replica:
            _end_one(open_requests, rng, tables, loads, at_work)
        replica = POLICIES[policy](task, loads, at_work, rng)
        is_hit = not tables[replica].acquire(_digest(task)).is_new
        loads[replica] += 1
        at_work[replica][task] += 1
        open_requests.append((replica, task))
        if number >= n_requests // 2:
            n_hits += is_hit
            peaks.append(max(loads) / per_replica)
    median = sorted(peaks)[len(peaks) // 2]
    return Routed(policy, n_tasks, n_slots, n_hits / len(peaks), median)


def lru_hit_rate(n_tasks: int, n_slots: int, a: float) -> float:
    """Che's approximation for one LRU cache under independent Zipf requests; 1 where all tasks fit."""
    if n_slots >= n_tasks:
        return 1.0
    share = _shares(n_tasks, a)
    low, high = 0.0, 1.0
    while np.sum(-np.expm1(-share * high)) < n_slots:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(-np.expm1(-share * middle)) < n_slots else (low, middle)
    return float(np.sum(share * -np.expm1(-share * high)))


def zipf(n_tasks: int, a: float, n_requests: int, seed: int) -> list[int]:
    """Task numbers, the most frequent is 0."""
    edges = np.cumsum(_shares(n_tasks, a))
    drawn = np.random.default_rng(seed).random(n_requests) * edges[-1]
    numbers: list[int] = np.searchsorted(edges, drawn).tolist()
    return numbers


def _shares(n_tasks: int, a: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    weights: np.ndarray[tuple[int], np.dtype[np.float64]] = np.arange(1, n_tasks + 1, dtype=np.float64) ** -a
    weights /= weights.sum()
    return weights


def _warm(n_tasks: int, n_slots: int, n_replicas: int) -> list[SlotTable]:
    """Arenas that hold the most frequent tasks, so that the run need not begin with empty ones."""
    tables = [SlotTable(n_slots) for _ in range(n_replicas)]
    for table in tables:
        for task in reversed(range(min(n_tasks, n_slots))):
            table.acquire(_digest(task))
            table.release(_digest(task))
    return tables


def _end_one(
    open_requests: list[tuple[int, int]],
    rng: random.Random,
    tables: Sequence[SlotTable],
    loads: list[int],
    at_work: Sequence[Counter[int]],
) -> None:
    chosen = rng.randrange(len(open_requests))
    open_requests[chosen], open_requests[-1] = open_requests[-1], open_requests[chosen]
    replica, task = open_requests.pop()
    tables[replica].release(_digest(task))
    loads[replica] -= 1
    at_work[replica][task] -= 1
    if not at_work[replica][task]:
        del at_work[replica][task]


def _digest(task: int) -> Digest:
    """Any text will do as the identity of a file."""
    return Digest(str(task))
