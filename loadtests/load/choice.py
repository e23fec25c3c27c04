"""Which task each request names."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, get_args

Choice = Literal["round-robin", "uniform", "zipf"]
CHOICES: tuple[str, ...] = get_args(Choice)


def choose_names(names: Sequence[str], n_requests: int, *, how: Choice, zipf_a: float, seed: str) -> list[str]:
    """One name for each request.

    round-robin takes the names in turn; uniform draws evenly; zipf draws names[i] with a probability
    proportional to (i + 1) ** -zipf_a.
    """
    if how == "round-robin":
        return [names[i % len(names)] for i in range(n_requests)]
    exponent = zipf_a if how == "zipf" else 0.0
    cumulative = list(accumulate((rank + 1) ** -exponent for rank in range(len(names))))
    return random.Random(seed).choices(names, cum_weights=cumulative, k=n_requests)


def top1_share(names: Sequence[str]) -> float:
    """Share of the requests that name the most frequent task; 1.0 if all name the same."""
    if not names:
        raise ValueError("no requests, so no task is the most frequent")
    return Counter(names).most_common(1)[0][1] / len(names)
