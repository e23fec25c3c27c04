"""Score the pack's tasks through a running server, on the items that their files' scores were measured on."""

import asyncio

import httpx

from onebasis.demo.client import ask
from onebasis.demo.tasks import DEMO_TASKS

_MAX_TOKENS = 24


async def score_over_http(url: str, model: str, task: str, *, n_items: int, concurrency: int = 32) -> float:
    """Share of a task's first `n_items` unseen items that `model` (the task, or the base) answers right.

    Raises:
        httpx.HTTPError: a request failed.
    """
    demo_task = DEMO_TASKS[task]
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:

        async def is_right(prompt: str, answer: str) -> bool:
            async with gate:
                output = await ask(client, model, prompt, max_tokens=_MAX_TOKENS)
            return demo_task.is_correct(output.text, answer)

        examples = demo_task.examples("val", n_items)
        return sum(await asyncio.gather(*(is_right(e.prompt, e.answer) for e in examples))) / len(examples)
