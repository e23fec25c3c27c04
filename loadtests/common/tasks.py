"""Many valid tasks out of a few real ones, and their way into a server."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np

from loadtests.common.errors import LoadTestError
from onebasis.coefficients.format import parse_coefficients, write_coefficients

NOISE = 0.05
"""Deviation of what is added to a number, as a share of the file's root mean square."""
N_AT_ONCE = 4


def synthetic_tasks(sources: Sequence[Path], names: Iterable[str], *, seed: int) -> Iterator[tuple[str, bytes]]:
    """A coefficient file for each name: a source file of full size, taken in turn, with noise on every number."""
    files = [parse_coefficients(path.read_bytes()) for path in sources]
    for i, name in enumerate(names):
        source = files[i % len(files)]
        numbers = source.numbers()
        rms = float(np.sqrt(np.mean(numbers**2)))
        rng = np.random.default_rng([seed, i])
        noisy = numbers + NOISE * rms * rng.standard_normal(numbers.shape, dtype=np.float32)
        yield (
            name,
            write_coefficients(
                noisy.astype(source.values.dtype if source.values.dtype.kind == "f" else np.float16),
                form=source.form,
                basis=source.basis,
                base_fingerprint=source.base_fingerprint,
                k=source.k,
                sites=source.sites,
                task=name,
                provenance={"synthetic": f"{sources[i % len(files)].name} with noise, seed {seed}"},
            ),
        )


def task_name(number: int) -> str:
    """Of the synthetic task of this number."""
    return f"task-{number:05}"


async def register(url: str, tasks: Iterable[tuple[str, bytes]]) -> int:
    """Upload all, a few at a time; the bytes of their files.

    Raises:
        LoadTestError: the server refused one or did not answer.
    """
    waiting = iter(tasks)
    n_bytes = 0
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:

        async def work() -> None:
            nonlocal n_bytes
            for name, data in waiting:
                response = await client.put(f"/v1/tasks/{name}", content=data)
                if not response.is_success:
                    raise LoadTestError(f"{url}: task {name} got HTTP {response.status_code}: {response.text[:200]}")
                n_bytes += len(data)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(N_AT_ONCE):
                    group.create_task(work())
        except* httpx.HTTPError as errors:
            raise LoadTestError(f"{url}: {errors.exceptions[0]!r} while tasks were uploaded") from None
        except* LoadTestError as errors:
            raise errors.exceptions[0] from None
    return n_bytes
