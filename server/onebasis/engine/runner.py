"""One step on the device: plan in, one sampled token out for each sequence that is due one."""

from typing import Protocol

import torch
from torch import Tensor

from onebasis.coefficients.arena import Arena
from onebasis.core.errors import NoBasis
from onebasis.core.ids import BASE_SLOT
from onebasis.engine.batch import build_batch, order_runs
from onebasis.engine.sampler import Sampled, SampleRow, sample
from onebasis.engine.scheduler import StepPlan
from onebasis.engine.sequence import EngineSequence
from onebasis.model.batch import ForwardBatch


class StepDecoder(Protocol):
    """The base model with its sites, over a KV cache of its own."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits [n_samples, n_vocab], at the rows that the batch asks for; valid until the next call."""
        ...


class Runner:
    """Joins decoder, arena and sampler. Engine thread only.

    Args:
        arena: None for a server without a basis; then no sequence may have a task.
    """

    def __init__(self, decoder: StepDecoder, arena: Arena | None, *, block_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._arena = arena
        self._block_size = block_size
        self._device = device

    @property
    def n_resident_tasks(self) -> int:
        return 0 if self._arena is None else self._arena.slots.n_resident

    def hold_task(self, sequence: EngineSequence) -> bool:
        """Make the sequence's task resident and pin it. True if its cores had to be copied in for that.

        Never short of a slot: the arena has at least as many as sequences can run. Raises NoBasis without one.
        """
        if sequence.request.task is None:
            return False
        if self._arena is None:
            raise NoBasis
        n_before = self._arena.n_copied
        sequence.slot = self._arena.acquire(sequence.request.task.coefficients)
        return self._arena.n_copied > n_before

    def let_go_of_task(self, sequence: EngineSequence) -> None:
        """Undo `hold_task`; nothing to do for a sequence that holds none."""
        if sequence.request.task is None or self._arena is None or sequence.slot == BASE_SLOT:
            return
        self._arena.release(sequence.request.task.coefficients)
        sequence.slot = BASE_SLOT

    def execute(self, plan: StepPlan) -> list[tuple[EngineSequence, Sampled]]:
        """Run the step; the next token of every sequence whose last known token is in it."""
        runs = order_runs(plan)
        logits = self._decoder.forward(build_batch(runs, block_size=self._block_size, device=self._device))
        sampling = [run.sequence for run in runs if run.samples]
        rows = [
            SampleRow(sequence.request.sampling, sequence.request.prompt_ids, sequence.output_ids)
            for sequence in sampling
        ]
        return list(zip(sampling, sample(logits, rows) if rows else [], strict=True))
