"""The two ways to offer load. Closed: a client sends when its last answer is complete. Open: a clock sends."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import httpx

from loadtests.load.client import Answer, Request, complete


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answers in order of completion; wall_s runs from the start of the loop to the last of them."""

    answers: tuple[Answer, ...]
    wall_s: float


async def closed_loop(
    client: httpx.AsyncClient,
    requests: Sequence[Request],
    *,
    concurrency: int,
    timeout_s: float,
    on_answer: Callable[[], None],
) -> Outcome:
    """Keep `concurrency` requests in flight until all are answered."""
    answers: list[Answer] = []
    waiting = iter(requests)  # shared: each worker takes the next one

    async def work() -> None:
        for request in waiting:
            answers.append(await complete(client, request, timeout_s=timeout_s))
            on_answer()

    started_s = perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return Outcome(tuple(answers), perf_counter() - started_s)


async def open_loop(
    client: httpx.AsyncClient,
    requests: Sequence[Request],
    *,
    arrivals_s: Sequence[float],
    timeout_s: float,
    on_answer: Callable[[], None],
) -> Outcome:
    """Send request i at arrivals_s[i] after the start, whatever has become of the others."""
    answers: list[Answer] = []

    async def send(request: Request, due_s: float) -> None:
        answers.append(await complete(client, request, timeout_s=timeout_s, due_s=due_s))
        on_answer()

    started_s = perf_counter()
    async with asyncio.TaskGroup() as group:
        for request, arrival_s in zip(requests, arrivals_s, strict=True):
            due_s = started_s + arrival_s
            await asyncio.sleep(due_s - perf_counter())
            group.create_task(send(request, due_s))
    return Outcome(tuple(answers), perf_counter() - started_s)
