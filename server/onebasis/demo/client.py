"""The few HTTP calls that the demo makes, as any client would."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and how long it took from sending to its last token."""

    text: str
    duration_ms: float


async def ask(client: httpx.AsyncClient, model: str, prompt: str, *, max_tokens: int) -> Answer:
    """A greedy chat answer of a task or the base. Raises httpx.HTTPError."""
    started_s = time.monotonic()
    response = await client.post(
        "/v1/chat/completions",
        json={
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
        },
    )
    response.raise_for_status()
    text: str = response.json()["choices"][0]["message"]["content"]
    return Answer(text, 1000 * (time.monotonic() - started_s))


async def register(client: httpx.AsyncClient, task: str, path: Path) -> float:
    """Upload a coefficient file; milliseconds it took. Raises httpx.HTTPError."""
    started_s = time.monotonic()
    response = await client.put(f"/v1/tasks/{task}", content=path.read_bytes())
    response.raise_for_status()
    return 1000 * (time.monotonic() - started_s)


async def register_all(url: str, files: Mapping[str, Path]) -> None:
    """Upload coefficient files by task name, one after another. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for task, path in files.items():
            await register(client, task, path)
