"""What tasks cost inside vLLM: a bare vLLM and one with our workers, in turns, on the same prompts.

    python -m loadtests.vllm_tasks --model DIR --pack DIR [--rounds 3] [--json FILE]

Needs the environment of `make vllm-test`. Each cell asks `concurrency` requests at once (64 random prompt tokens, 32
output tokens, greedy) and is done `rounds` times, bare and ours in a shuffled order; shown are tokens/s and the
workers' CPU time for each token, which neighbours on the machine disturb less; the engine core's process
is left out of it, as it spins while it waits. Tasks are the pack's with noise.
"""

import argparse
import asyncio
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import vllm
from rich.console import Console
from vllm import LLM, SamplingParams

from loadtests.common.files import check_target, save_results
from loadtests.common.machine import describe_machine
from loadtests.common.tasks import synthetic_tasks, task_name
from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.vllm_plugin.control import TaskTable, engine_arguments, request_arguments

N_PROMPT, N_OUTPUT = 64, 32
N_TASKS = (0, 1, 32, 1000)
CONCURRENCY = (1, 8, 32)
_KV_CACHE_BYTES = 2**30  # by itself vLLM takes nine tenths of the memory, and there are two here


@dataclass
class Cell:
    """One line of the table: medians of the rounds.

    cpu_ms: of the workers for one output token. speed_of_bare, cpu_of_bare: against the bare server in the same round,
    both 1 where ours costs nothing and below where it does.
    """

    server: str
    n_tasks: int
    concurrency: int
    tokens_per_s: float
    cpu_ms: float
    speed_of_bare: float
    cpu_of_bare: float


class Server:
    """A vLLM, and which of this machine's processes it is."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        before = _children()
        begun = time.monotonic()
        self.name = name
        self.llm = LLM(**arguments)
        self._processes = [psutil.Process(pid) for pid in _children() - before]
        self._workers = [process for process in self._processes if "Worker" in "".join(process.cmdline())]
        if not self._workers:
            raise RuntimeError("no process of vLLM's calls itself a worker; is it in this one?")
        _say(f"{name}: started in {time.monotonic() - begun:.0f} s, {self.memory_mib():.0f} MiB")

    def ask(self, n: int, extra_args: Sequence[dict[str, int] | None], rng: random.Random) -> tuple[float, float]:
        """(tokens/s, CPU ms for each token) of n requests at once."""
        prompts = [{"prompt_token_ids": [rng.randrange(1000, 40000) for _ in range(N_PROMPT)]} for _ in range(n)]
        sampling = [
            SamplingParams(temperature=0, max_tokens=N_OUTPUT, ignore_eos=True, extra_args=extra)
            for extra in extra_args
        ]
        begun, begun_cpu = time.monotonic(), self._cpu_s()
        outputs = self.llm.generate(prompts, sampling, use_tqdm=False)
        wall, cpu = time.monotonic() - begun, self._cpu_s() - begun_cpu
        n_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        if n_tokens != n * N_OUTPUT:
            raise RuntimeError(f"{self.name}: {n_tokens} tokens for {n} requests")
        return n_tokens / wall, 1000 * cpu / n_tokens

    def memory_mib(self) -> float:
        """Resident, of engine core and workers."""
        return sum(float(process.memory_info().rss) for process in self._processes) / 2**20

    def _cpu_s(self) -> float:
        times = [process.cpu_times() for process in self._workers]
        return sum(float(t.user + t.system) for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pack", type=Path, required=True, help="folder with a basis and coefficient files for it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    check_target(options.json)
    machine = describe_machine()
    sizes: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_model_len": 256,
        "max_num_seqs": 32,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": _KV_CACHE_BYTES,
    }
    pack = options.pack
    (basis,) = pack.glob("*.basis.safetensors")
    common = sizes | {"model": str(options.model), "max_num_batched_tokens": 2048}
    bare = Server("bare", common)
    ours = Server("ours", common | engine_arguments(basis, max(N_TASKS)))
    rows = _load_tasks(ours, read_basis_spec(basis), sorted(pack.glob("*.coef.safetensors")))
    _say(f"ours with {max(N_TASKS)} tasks: {ours.memory_mib():.0f} MiB")
    cells = _measure(bare, ours, rows, rounds=options.rounds)
    for cell in cells:
        _say(
            f"{cell.server:5} tasks {cell.n_tasks:5} c={cell.concurrency:2} {cell.tokens_per_s:8.1f} tokens/s, "
            f"{cell.speed_of_bare:.2f} of bare; {cell.cpu_ms:7.3f} ms CPU a token, {cell.cpu_of_bare:.2f} of bare"
        )
    if options.json is not None:
        save_results(
            options.json,
            benchmark="vllm-tasks",
            command=shlex.join(["python", "-m", "loadtests.vllm_tasks", *sys.argv[1:]]),
            machine=machine,
            settings=sizes
            | {"n_prompt": N_PROMPT, "n_output": N_OUTPUT, "rounds": options.rounds, "vllm": vllm.__version__},
            results={"cells": [asdict(cell) for cell in cells]},
        )


def _load_tasks(server: Server, basis: BasisSpec, sources: Sequence[Path]) -> list[dict[str, int] | None]:
    """What requests of the tasks say."""

    async def call(method: str, *, args: tuple[object, ...] = ()) -> Sequence[object]:
        found: Sequence[object] = server.llm.collective_rpc(method, args=args)
        return found

    async def load() -> list[dict[str, int] | None]:
        table = TaskTable(call, max(N_TASKS))
        rows = [await table.acquire(task) for task in tasks]
        return [request_arguments(row).extra_args for row in rows]

    names = map(task_name, range(max(N_TASKS)))
    tasks = [bind(parse_coefficients(data), basis) for _, data in synthetic_tasks(sources, names, seed=0)]
    begun = time.monotonic()
    rows = asyncio.run(load())
    _say(f"{len(rows)} tasks copied in {time.monotonic() - begun:.1f} s")
    return rows


def _measure(bare: Server, ours: Server, rows: Sequence[dict[str, int] | None], *, rounds: int) -> list[Cell]:
    cells: list[Cell] = []
    for concurrency in CONCURRENCY:
        plan = [(bare, 0), *((ours, n_tasks) for n_tasks in N_TASKS)]
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for turn in range(rounds + 1):  # the first warms up
            for server, n_tasks in random.Random(turn).sample(plan, len(plan)):
                rng = random.Random(turn)
                extra = [None if n_tasks == 0 else rows[rng.randrange(n_tasks)] for _ in range(concurrency)]
                measured = server.ask(concurrency, extra, rng)
                if turn:
                    found.setdefault((server.name, n_tasks), []).append(measured)
        reference = found[bare.name, 0]
        for (name, n_tasks), samples in found.items():
            both = list(zip(samples, reference, strict=True))
            cells.append(
                Cell(
                    name,
                    n_tasks,
                    concurrency,
                    tokens_per_s=statistics.median(speed for speed, _ in samples),
                    cpu_ms=statistics.median(cpu for _, cpu in samples),
                    speed_of_bare=statistics.median(own[0] / other[0] for own, other in both),
                    cpu_of_bare=statistics.median(other[1] / own[1] for own, other in both),
                )
            )
    return cells


def _say(line: str) -> None:
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


if __name__ == "__main__":
    main()
