"""One step on the device: plan in, one sampled token out for each sequence that is due one."""

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from onebasis.coefficients.arena import Arena
from onebasis.coefficients.residual_cache import ResidentResidual, ResidualCache
from onebasis.core.errors import NoBasis
from onebasis.core.ids import BASE_SLOT
from onebasis.engine.batch import build_batch, order_runs
from onebasis.engine.isolation import sample_isolated
from onebasis.engine.sampler import Sampled, SampleRow, score_tokens
from onebasis.engine.scheduler import ScheduledRun, StepPlan
from onebasis.engine.sequence import EngineSequence
from onebasis.model.batch import ForwardBatch


class StepDecoder(Protocol):
    """The base model with its sites, over a KV cache of its own."""

    path: str
    """What computes it, for the metrics: native, torch or cuda_graphs."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits [n_samples, n_vocab], at the rows that the batch asks for; valid until the next call."""
        ...

    def argmax(self, logits: Tensor) -> Tensor:
        """[n] int64, the likeliest token of each row of `logits`, which are the first n rows of the last `forward`.

        Of equal ones the first; the first NaN where there is one. Valid until the next `forward`.
        """
        ...


class Runner:
    """Joins decoder, the memory of tasks and sampler. Engine thread only.

    Invariant: `_held` has, by request id, the pinned residuals of sequences that have run and not ended.

    Args:
        arena: None for a server without a basis; then no sequence may have a task.
        on_apply: hears how many seconds the forward pass of a step took that holds a task.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        arena: Arena | None,
        residuals: ResidualCache,
        *,
        block_size: int,
        device: torch.device,
        on_apply: Callable[[float], None],
    ) -> None:
        self._decoder = decoder
        self._arena = arena
        self._residuals = residuals
        self._held: dict[str, ResidentResidual] = {}
        self._block_size = block_size
        self._device = device
        self._on_apply = on_apply

    @property
    def n_resident_tasks(self) -> int:
        return 0 if self._arena is None else self._arena.slots.n_resident

    @property
    def residual_bytes(self) -> int:
        """Of the resident residuals. From any thread."""
        return self._residuals.size_bytes

    def hold_task(self, sequence: EngineSequence) -> bool:
        """Make the sequence's task resident and pin it. True if its cores had to be copied in for that.

        Never short of a slot: the arena has at least as many as sequences can run.

        Raises:
            NoBasis: there is no arena.
            ResidualMemoryFull: never of a sequence that was preempted, for it keeps its residual.
        """
        if sequence.request.task is None:
            return False
        if self._arena is None:
            raise NoBasis
        n_before = self._arena.n_copied
        coefficients = sequence.request.task.coefficients
        sequence.slot = self._arena.acquire(coefficients)
        if coefficients.residual and sequence.request_id not in self._held:
            self._held[sequence.request_id] = self._residuals.acquire(coefficients)
        return self._arena.n_copied > n_before

    def let_go_of_task(self, sequence: EngineSequence) -> None:
        """Unpin the cores; nothing to do for a sequence that holds none."""
        if sequence.request.task is None or self._arena is None or sequence.slot == BASE_SLOT:
            return
        self._arena.release(sequence.request.task.coefficients)
        sequence.slot = BASE_SLOT

    def forget_task(self, sequence: EngineSequence) -> None:
        """Undo `hold_task`, for a sequence that will not run again."""
        self.let_go_of_task(sequence)
        if sequence.request.task is not None and self._held.pop(sequence.request_id, None) is not None:
            self._residuals.release(sequence.request.task.coefficients)

    def execute(self, plan: StepPlan) -> list[tuple[EngineSequence, Sampled | Exception]]:
        """Run the step; of every sequence whose last known token is in it, the next one or why there is none."""
        runs = order_runs(plan)
        batch = build_batch(runs, block_size=self._block_size, device=self._device, residuals=self._held)
        started_s = time.monotonic()
        logits = self._decoder.forward(batch)
        if any(run.sequence.slot != BASE_SLOT for run in runs):
            self._on_apply(time.monotonic() - started_s)
        sampling = [run.sequence for run in runs if run.samples]
        _score_prompts(runs, logits[len(sampling) :])
        logits = logits[: len(sampling)]
        rows = [
            SampleRow(
                sequence.request.sampling,
                sequence.output_ids,
                allowed=None if sequence.constraint is None else sequence.constraint.allowed,
                seen=sequence.seen,
                banned_ids=sequence.banned_ids,
            )
            for sequence in sampling
        ]
        return list(zip(sampling, sample_isolated(logits, rows, self._decoder.argmax(logits)), strict=True))


def _score_prompts(runs: list[ScheduledRun], logits: Tensor) -> None:
    """Note what each prompt token was worth where a run scores it. logits: their rows, in order of runs."""
    start = 0
    for run in runs:
        scored, request = run.scored, run.sequence.request
        if scored and request.sampling.n_prompt_logprobs is not None:
            token_ids = request.prompt_ids[scored.start + 1 : scored.stop + 1]
            of_run = logits[start : start + len(scored)]
            run.sequence.prompt_logprobs += score_tokens(of_run, token_ids, request.sampling.n_prompt_logprobs)
        start += len(scored)
