"""The fleet that the page is about."""

from dataclasses import dataclass
from itertools import product
from typing import Final

from loadtests.fleet.arenas import POLICIES, Routed, simulate
from loadtests.fleet.convergence import Convergence, Fleet, converge


@dataclass(frozen=True, slots=True)
class Scenario:
    """Sizes of the simulation; `per_replica` is the number of requests under way on a replica, on average."""

    n_replicas: int = 100
    interval_s: float = 0.5  # of the followers: the server's
    n_workers: int = 4  # cores of PostgreSQL
    uploads_per_s: tuple[float, ...] = (0.1, 1.0, 10.0, 30.0, 100.0)
    duration_s: float = 60.0
    simulated_tasks: tuple[int, ...] = (10_000, 100_000)
    n_slots: int = 500
    per_replica: int = 16
    n_requests: int = 400_000
    zipf_a: float = 1.0
    small_bytes: int = 7_168  # form `vector` with 16 numbers at each of 224 sites
    seed: int = 0


SCENARIO: Final = Scenario()


def convergences_of(scenario: Scenario, idle_poll_ms: float, change_ms: float) -> list[Convergence]:
    """With PostgreSQL's measured time for a look that finds nothing, and for one that finds a new version."""
    poll_s = idle_poll_ms / 1000
    extra_s = max(0.0, change_ms / 1000 - poll_s)
    fleet = Fleet(scenario.n_replicas, scenario.interval_s, poll_s, extra_s, scenario.n_workers)
    return [
        converge(fleet, uploads_per_s=rate, duration_s=scenario.duration_s, seed=scenario.seed)
        for rate in scenario.uploads_per_s
    ]


def arenas_of(scenario: Scenario) -> list[Routed]:
    """Every policy with every number of tasks."""
    return [
        simulate(
            policy,
            n_tasks=n_tasks,
            n_slots=scenario.n_slots,
            n_replicas=scenario.n_replicas,
            per_replica=scenario.per_replica,
            n_requests=scenario.n_requests,
            a=scenario.zipf_a,
            seed=scenario.seed,
        )
        for n_tasks, policy in product(scenario.simulated_tasks, POLICIES)
    ]
