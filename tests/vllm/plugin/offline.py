"""A vLLM with a basis, asked offline, and the native engine asked the same."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

from onebasis.core.request import ResolvedTask, TaskCoefficients
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from onebasis.vllm_plugin.control import TaskRow, TaskTable, engine_arguments, request_arguments
from tests.engine.builders import make_request
from tests.engine.engines import Answer, build_engine, running

T = TypeVar("T")
Prompt = Sequence[int]


@dataclass(frozen=True)
class Ask:
    """A greedy request: which task, which prompt."""

    task: TaskCoefficients | None
    prompt: Prompt


class OfflineVllm:
    """vLLM's LLM with our workers, and a table over the first `n_rows` of their rows."""

    def __init__(self, model: Path, basis: Path, *, n_slots: int, **options: Any) -> None:
        sizes = {"max_model_len": 512, "max_num_batched_tokens": 512, "max_num_seqs": 64, "block_size": 32}
        self.llm = LLM(model=str(model), dtype="float32", **sizes | options, **engine_arguments(basis, n_slots))
        self._loop = asyncio.new_event_loop()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        return self._loop.run_until_complete(work())

    def table(self, n_rows: int) -> TaskTable:
        """A table that knows nothing yet; use one at a time."""
        return TaskTable(self._call, n_rows)

    def acquire(self, table: TaskTable, task: TaskCoefficients) -> TaskRow:
        return self._loop.run_until_complete(table.acquire(task))

    def outputs(self, asks: Sequence[Ask], table: TaskTable, *, n_tokens: int = 12) -> list[RequestOutput]:
        """All of them in one batch; rows are let go at the end."""
        rows = [None if ask.task is None else self.acquire(table, ask.task) for ask in asks]
        prompts, sampling = [], []
        for ask, row in zip(asks, rows, strict=True):
            arguments = request_arguments(row)
            salt = {} if arguments.cache_salt is None else {"cache_salt": arguments.cache_salt}
            prompts.append({"prompt_token_ids": list(ask.prompt), **salt})
            sampling.append(
                SamplingParams(temperature=0, max_tokens=n_tokens, ignore_eos=True, extra_args=arguments.extra_args)
            )
        found = self.llm.generate(prompts, sampling, use_tqdm=False)
        for row in rows:
            if row is not None:
                table.release(row)
        return found

    def answers(self, asks: Sequence[Ask], table: TaskTable, *, n_tokens: int = 12) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in self.outputs(asks, table, n_tokens=n_tokens)]

    async def _call(self, method: str, *, args: tuple[object, ...] = ()) -> Sequence[object]:
        found: Sequence[object] = self.llm.collective_rpc(method, args=args)
        return found


def native_answers(model: Path, basis: Path, asks: Sequence[Ask], *, n_tokens: int = 12) -> list[list[int]]:
    """What the native engine answers, in float32, all in one batch."""
    cpu = torch.device("cpu")
    base = load_base(model, dtype=torch.float32, device=cpu)
    parts = build_engine(
        base,
        load_basis(basis, dtype=torch.float32, device=cpu),
        n_blocks=2000,
        block_size=16,
        max_running=len(asks),
        max_step_tokens=512,
    )
    answers = []
    for i, ask in enumerate(asks):
        task = None if ask.task is None else ResolvedTask(f"task-{i}", ask.task)
        answers.append(Answer())
        request = make_request(str(i), tuple(ask.prompt), max_tokens=n_tokens, task=task, sink=answers[-1])
        parts.engine.submit([request])
    with running(parts):
        for answer in answers:
            answer.wait()
    return [answer.token_ids for answer in answers]
