"""One run: the load goes on while replica after replica is restarted and killed."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from loadtests.rollout.judgement import Failure, Part, failures, parts
from loadtests.rollout.load import Load
from loadtests.rollout.stack import Disturbance, Stack


@dataclass(frozen=True, slots=True)
class Settings:
    """`n_tokens`: of streams, from and to. `killed`: replicas by number. `least_s`: it all begins again until then."""

    n_streams: int
    n_tokens: tuple[int, int]
    killed: tuple[int, ...]
    least_s: float
    pause_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`open_streams`: at the beginning of each disturbance. `by_replica`: answers of each."""

    wall_s: float
    disturbances: list[Disturbance]
    open_streams: list[int]
    parts: dict[str, Part]
    by_replica: dict[str, int]
    failures: list[Failure]


async def run(stack: Stack, files: Sequence[bytes], settings: Settings) -> Outcome:
    """A rolling restart of all replicas and some kills, under load all the time."""
    load = Load(stack.gateway.url, files, settings.n_tokens, settings.seed)
    names = [f"rollout-{number}" for number in range(4)]
    await load.register(names)
    began_s = perf_counter()
    disturbances: list[Disturbance] = []
    open_streams: list[int] = []
    is_over = False
    async with asyncio.TaskGroup() as group:
        for _ in range(settings.n_streams):
            group.create_task(load.stream(names, lambda: is_over))
        group.create_task(load.ask(names, lambda: is_over))
        group.create_task(load.upload("rollout-upload", lambda: is_over))
        while not disturbances or perf_counter() - began_s < settings.least_s:
            plan = [(stack.restart, number) for number in range(len(stack.replicas))]
            for disturb, number in [*plan, *((stack.kill, number) for number in settings.killed)]:
                await asyncio.sleep(settings.pause_s)
                open_streams.append(load.n_open_streams)
                disturbances.append(await disturb(number))
        await asyncio.sleep(settings.pause_s)
        is_over = True
    await load.close()
    routed = await asyncio.to_thread(stack.gateway.routed)
    failed = failures(load.sent, routed, disturbances)
    mine = [routed[request.id].upstream for request in load.sent if request.id in routed]
    return Outcome(
        wall_s=perf_counter() - began_s,
        disturbances=disturbances,
        open_streams=open_streams,
        parts=parts(load.sent, routed, disturbances, failed),
        by_replica=dict(Counter(mine)),
        failures=failed,
    )
