"""Which replica is best for a request. Each score lies in 0..1; the weighted sum decides."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from picker.load import Load

_QUEUE, _KV, _RUNNING, _AFFINITY = 2.0, 2.0, 1.0, 1.0
_SAME: Final = 1e-9


def ranked(loads: Mapping[str, Load], task: str | None, rng: random.Random) -> list[str]:
    """All these endpoints, the best first; between equals chance decides.

    Args:
        loads: by endpoint.
        task: of the request; None if it names none.
    """
    queue = _least_is_best(loads, lambda load: load.n_waiting)
    running = _least_is_best(loads, lambda load: load.n_running)
    scores = {
        endpoint: _QUEUE * queue[endpoint]
        + _KV * (1 - load.kv_usage)
        + _RUNNING * running[endpoint]
        + (_AFFINITY * affinity(load, task) if task else 0.0)
        for endpoint, load in loads.items()
    }
    shuffled: Sequence[str] = rng.sample(list(scores), len(scores))
    return sorted(shuffled, key=lambda endpoint: -round(scores[endpoint] / _SAME))


def affinity(load: Load, task: str) -> float:
    """1 where the task is at work, less where it has to be brought in, 0 where there is no room for it."""
    if task in load.running_tasks:
        return 1.0
    if len(load.running_tasks) + len(load.waiting_tasks) < load.max_tasks:
        return 0.8
    return 0.6 if task in load.waiting_tasks else 0.0


def _least_is_best(loads: Mapping[str, Load], count: Callable[[Load], int]) -> dict[str, float]:
    """1 for the smallest count, 0 for the largest; 1 for all if they are equal."""
    counts = {endpoint: count(load) for endpoint, load in loads.items()}
    least, most = min(counts.values()), max(counts.values())
    return {endpoint: (most - n) / (most - least) if most > least else 1.0 for endpoint, n in counts.items()}
