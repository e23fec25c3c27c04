"""How long until every replica serves an upload, and how busy that keeps PostgreSQL: followers that poll, simulated."""

import heapq
import random
from bisect import bisect_right
from dataclasses import dataclass

from loadtests.common.timing import percentile


@dataclass(frozen=True, slots=True)
class Fleet:
    """Times in seconds. `n_workers`: queries that PostgreSQL works at at once, the others wait in turn."""

    n_replicas: int
    interval_s: float
    poll_s: float
    change_s: float
    n_workers: int


@dataclass(frozen=True, slots=True)
class Convergence:
    """From an upload's commit until the last replica serves it. `busy`: share of the workers' time.

    `busy` over 1 is more than there is to have: the followers fall behind without end, and the times mean nothing.
    """

    uploads_per_s: float
    p50_s: float
    p99_s: float
    polls_per_s: float
    busy: float


def converge(fleet: Fleet, *, uploads_per_s: float, duration_s: float, seed: int) -> Convergence:
    """Uploads come by chance (Poisson); each replica polls, waits for its turn, reads what is new, pauses, polls."""
    rng = random.Random(seed)
    uploads_s = _arrivals(rng, uploads_per_s, duration_s)
    everywhere_s = [0.0] * len(uploads_s)
    n_seen = [0] * fleet.n_replicas
    polls = [(rng.uniform(0, fleet.interval_s), replica) for replica in range(fleet.n_replicas)]
    heapq.heapify(polls)
    free_s = [0.0] * fleet.n_workers
    busy_s, n_polls, now_s = 0.0, 0, 0.0
    until_s = 2 * duration_s
    while now_s < until_s and (now_s < duration_s or min(n_seen) < len(uploads_s)):
        now_s, replica = heapq.heappop(polls)
        started_s = max(now_s, heapq.heappop(free_s))
        n_known = bisect_right(uploads_s, started_s)
        took_s = fleet.poll_s + fleet.change_s * (n_known - n_seen[replica])
        done_s = started_s + took_s
        heapq.heappush(free_s, done_s)
        heapq.heappush(polls, (done_s + fleet.interval_s, replica))
        for number in range(n_seen[replica], n_known):
            everywhere_s[number] = max(everywhere_s[number], done_s)
        n_seen[replica] = n_known
        busy_s += took_s
        n_polls += 1
    lags_s = [end - begin for begin, end in zip(uploads_s, everywhere_s, strict=True)][: min(n_seen)]
    return Convergence(
        uploads_per_s=uploads_per_s,
        p50_s=percentile(lags_s, 50),
        p99_s=percentile(lags_s, 99),
        polls_per_s=n_polls / now_s,
        busy=busy_s / (now_s * fleet.n_workers),
    )


def _arrivals(rng: random.Random, per_s: float, duration_s: float) -> list[float]:
    times: list[float] = []
    now_s = rng.expovariate(per_s)
    while now_s < duration_s or not times:
        times.append(now_s)
        now_s += rng.expovariate(per_s)
    return times
