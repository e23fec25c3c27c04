"""When open-loop requests are due."""

import random


def poisson_arrivals(rate: float, duration_s: float, seed: str) -> tuple[float, ...]:
    """Arrival times of a Poisson process: gaps are exponential with mean 1 / rate.

    Args:
        rate: mean arrivals a second.
        duration_s: length of the window.
        seed: the same seed gives the same times.

    Returns:
        Seconds after the start, rising, all below duration_s. Empty when no arrival fell in the window.
    """
    rng = random.Random(seed)
    times: list[float] = []
    due_s = rng.expovariate(rate)
    while due_s < duration_s:
        times.append(due_s)
        due_s += rng.expovariate(rate)
    return tuple(times)
