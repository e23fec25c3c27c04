"""Runs sequences through scheduler, batch layout and decoder as the engine does, and keeps every position's logits."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from onebasis.coefficients.arena import Arena
from onebasis.coefficients.residual_cache import ResidentResidual, ResidualCache
from onebasis.core.request import GenerateRequest
from onebasis.engine.batch import build_batch, order_runs
from onebasis.engine.block_pool import BlockPool
from onebasis.engine.runner import StepDecoder
from onebasis.engine.scheduler import Scheduler, StepPlan
from onebasis.engine.sequence import EngineSequence
from onebasis.kernels.cpu.library import BLOCK_SIZE as NATIVE_BLOCK_SIZE
from onebasis.kernels.cpu.library import Library
from onebasis.model.adapted import StepTasks, adapt_model
from onebasis.model.decoder import Decoder
from onebasis.model.factors import Basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase
from onebasis.model.native_decoder import NativeDecoder, Quantization, TaskTable
from tests.model.families import CPU

BLOCK_SIZE = 4
MAX_STEP_TOKENS = 5


@dataclass
class Trace:
    """One sequence: its answer, and the logits of prompt and answer, by position."""

    prompt_ids: tuple[int, ...]
    answer: list[int] = field(default_factory=list)
    logits_at: dict[int, Tensor] = field(default_factory=dict)

    @property
    def token_ids(self) -> list[int]:
        """What the model saw: all but the last sampled token."""
        return [*self.prompt_ids, *self.answer[:-1]]

    @property
    def logits(self) -> Tensor:
        """[n_tokens, n_vocab] in order of position."""
        return torch.stack([self.logits_at[position] for position in range(len(self.token_ids))])


class Stepper:
    """A server's insides for a base, greedy and on this thread. Steps are small, so prefills are chunked and mixed
    with the decodes of others.
    """

    def __init__(
        self,
        base: LoadedBase,
        basis: Basis | None = None,
        *,
        n_blocks: int = 60,
        library: Library | None = None,
        n_threads: int = 2,
        quantization: Quantization | None = None,
    ) -> None:
        """With `library`, the native decoder computes, as the next two say; without, torch does."""
        self._arena = None if basis is None else Arena(basis.spec, n_slots=4, device=CPU)
        self._residuals = ResidualCache(limit_bytes=10_000_000, dtype=base.model.dtype, device=CPU)
        self._held: dict[str, ResidentResidual] = {}
        self._block_size = BLOCK_SIZE if library is None else NATIVE_BLOCK_SIZE
        self._decoder = (
            self._torch_decoder(base, basis, n_blocks)
            if library is None
            else self._native_decoder(base, basis, library, n_blocks, n_threads, quantization)
        )
        pool = BlockPool(n_blocks, self._block_size)
        self._scheduler = Scheduler(pool, max_running=4, max_step_tokens=MAX_STEP_TOKENS)
        self.n_mixed_steps = 0
        self.n_preempted = 0

    def _torch_decoder(self, base: LoadedBase, basis: Basis | None, n_blocks: int) -> StepDecoder:
        step = StepTasks(0 if self._arena is None else self._arena.base_row)
        adapt_model(base.model, basis, {} if self._arena is None else self._arena.site_cores, step)
        cache = KVCache(base.text_config, n_blocks=n_blocks, block_size=BLOCK_SIZE, dtype=base.model.dtype, device=CPU)
        return Decoder(base, cache, step)

    def _native_decoder(
        self,
        base: LoadedBase,
        basis: Basis | None,
        library: Library,
        n_blocks: int,
        n_threads: int,
        quantization: Quantization | None,
    ) -> StepDecoder:
        tasks = None if self._arena is None else TaskTable(self._arena.table, self._arena.site_offsets)
        sizes = {"n_blocks": n_blocks, "max_step_tokens": MAX_STEP_TOKENS, "max_model_len": 256}
        return NativeDecoder(base, basis, tasks, library, **sizes, n_threads=n_threads, quantization=quantization)

    def run(self, arrivals: list[tuple[int, GenerateRequest]]) -> dict[str, Trace]:
        """Answer all requests, each added before the step of its number."""
        sequences = {request.request_id: EngineSequence(request, arrived_s=0.0) for _, request in arrivals}
        traces = {request.request_id: Trace(request.prompt_ids) for _, request in arrivals}
        open_ids = set(sequences)
        n_steps = 0
        while open_ids:
            for at_step, request in arrivals:
                if at_step == n_steps:
                    self._scheduler.add(sequences[request.request_id])
            plan = self._scheduler.plan()
            if plan.runs:
                self._step(plan, traces, open_ids)
            n_steps += 1
            assert n_steps < 1000, f"never ended: {open_ids}"
        return traces

    def _step(self, plan: StepPlan, traces: dict[str, Trace], open_ids: set[str]) -> None:
        self._hold_tasks(plan)
        runs = order_runs(plan)
        batch = build_batch(runs, block_size=self._block_size, device=CPU, residuals=self._held)
        sampled = self._decoder.forward(batch).clone()
        assert torch.equal(self._decoder.argmax(sampled), sampled.argmax(dim=-1))
        everywhere = self._decoder.forward(replace(batch, logit_rows=torch.arange(plan.n_tokens)))
        self.n_mixed_steps += batch.decodes is not None and len(batch.chunks) > 0
        self.n_preempted += len(plan.preempted)
        row = 0
        for run in runs:
            for position in range(run.start, run.end):
                traces[run.sequence.request_id].logits_at[position] = everywhere[row].clone()
                row += 1
        sampling = [run.sequence for run in runs if run.samples]
        self._scheduler.commit(plan)
        for sequence, logits in zip(sampling, sampled, strict=True):
            token_id = int(logits.argmax())
            traces[sequence.request_id].answer.append(token_id)
            if sequence.append(token_id) is not None:
                self._scheduler.remove(sequence)
                self._let_go(sequence)
                open_ids.discard(sequence.request_id)
        self._scheduler.check_integrity()

    def _hold_tasks(self, plan: StepPlan) -> None:
        for sequence in plan.preempted:
            self._let_go(sequence)
        for sequence in plan.admitted:
            if sequence.request.task is not None and self._arena is not None:
                coefficients = sequence.request.task.coefficients
                sequence.slot = self._arena.acquire(coefficients)
                if coefficients.residual:
                    self._held[sequence.request_id] = self._residuals.acquire(coefficients)

    def _let_go(self, sequence: EngineSequence) -> None:
        if sequence.request.task is not None and self._arena is not None:
            self._arena.release(sequence.request.task.coefficients)
            if self._held.pop(sequence.request_id, None) is not None:
                self._residuals.release(sequence.request.task.coefficients)
