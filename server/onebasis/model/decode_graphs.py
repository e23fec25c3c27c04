"""Steps of decodes alone as CUDA graphs: recorded once for a few sizes, replayed with a batch that is padded to one."""

from collections.abc import Callable
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.core.ids import BASE_SLOT
from onebasis.model.batch import DecodeGroup, ForwardBatch
from onebasis.model.decoder import Decoder

Forward = Callable[[ForwardBatch], Tensor]
Record = Callable[[Forward, ForwardBatch], Callable[[], Tensor]]
"""Runs a step once on a batch; what it gives runs the same again, on what the batch's tensors hold by then."""


class DecodeGraphs:
    """A decoder whose steps of decodes alone cost the host one launch. Other steps go to the decoder as they are.

    A step with residuals does too: it has products of sizes that differ from step to step.
    A step is padded to the next recorded size: the rows behind its own are base tokens that write to the cache's
    scratch block. Steps with and without tasks are recorded apart, since the latter run nothing of the basis.
    Engine thread only.

    Args:
        max_seqs: most decodes in a step. max_model_len: most tokens of a sequence.
        with_tasks: whether steps may have tasks at all.
        record: how; `CudaGraphs()` on a GPU.
    """

    path = "cuda_graphs"

    def __init__(
        self, decoder: Decoder, *, max_seqs: int, max_model_len: int, with_tasks: bool, record: Record
    ) -> None:
        self._decoder = decoder
        self._sizes = graph_sizes(max_seqs)
        self._scratch_block = decoder.cache.scratch_block
        self._block_size = decoder.cache.block_size
        self._n_columns = -(-max_model_len // self._block_size)
        self._graphs: dict[tuple[int, bool], tuple[ForwardBatch, Callable[[], Tensor]]] = {}
        for size in reversed(self._sizes):  # the largest first: the others fit into its memory
            for has_tasks in (False, True) if with_tasks else (False,):
                batch = self._padded(_empty_batch(decoder.device, has_tasks=has_tasks), size)
                self._graphs[size, has_tasks] = (batch, record(decoder.forward, batch))

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Logits as `Decoder.forward`."""
        n_seqs = 0 if batch.decodes is None else batch.decodes.n_seqs
        if batch.chunks or batch.residuals or not 0 < n_seqs <= self._sizes[-1]:
            return self._decoder.forward(batch)
        size = next(size for size in self._sizes if size >= n_seqs)
        inputs, replay = self._graphs[size, batch.token_slots is not None]
        _copy_batch_(inputs, self._padded(batch, size))
        return replay().index_select(0, batch.logit_rows)

    def argmax(self, logits: Tensor) -> Tensor:
        """As of any decoder."""
        return self._decoder.argmax(logits)

    def _padded(self, batch: ForwardBatch, size: int) -> ForwardBatch:
        return pad_decodes(
            batch, size, n_columns=self._n_columns, scratch_block=self._scratch_block, block_size=self._block_size
        )


class CudaGraphs:
    """Records steps as CUDA graphs that share their memory. Raises RuntimeError if a step waits for the device."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward, batch: ForwardBatch) -> Callable[[], Tensor]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # compiles, and allocates what libraries keep
                forward(batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = forward(batch)

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def graph_sizes(max_seqs: int) -> tuple[int, ...]:
    """Powers of two below max_seqs, and max_seqs: no step is padded to twice its size."""
    return (*(1 << i for i in range((max_seqs - 1).bit_length())), max_seqs)


def pad_decodes(
    batch: ForwardBatch, n_seqs: int, *, n_columns: int, scratch_block: int, block_size: int
) -> ForwardBatch:
    """The same decodes in a batch of fixed sizes, all rows' logits wanted.

    Args:
        batch: decodes alone, at most n_seqs, none for nothing but padding.
        n_columns: of the block tables, at least as many as the batch has.
        scratch_block: where the rows behind the batch's own write and look.
    """
    n_more = n_seqs - batch.token_ids.shape[0]
    if batch.decodes is None:
        tables, kv_lengths = batch.token_ids.new_zeros(0, 0), batch.token_ids
    else:
        tables, kv_lengths = batch.decodes.block_tables, batch.decodes.kv_lengths
    slots = batch.token_slots
    return ForwardBatch(
        token_ids=F.pad(batch.token_ids, (0, n_more)),
        positions=F.pad(batch.positions, (0, n_more)),
        kv_rows=F.pad(batch.kv_rows, (0, n_more), value=scratch_block * block_size),
        token_slots=None if slots is None else F.pad(slots, (0, n_more), value=BASE_SLOT),
        logit_rows=torch.arange(n_seqs, device=batch.token_ids.device),
        decodes=DecodeGroup(
            F.pad(tables, (0, n_columns - tables.shape[1], 0, n_more), value=scratch_block),
            F.pad(kv_lengths, (0, n_more), value=1),
        ),
        chunks=(),
    )


def _empty_batch(device: torch.device, *, has_tasks: bool) -> ForwardBatch:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return ForwardBatch(none, none, none, none.int() if has_tasks else None, none, None, ())


def _copy_batch_(target: ForwardBatch, source: ForwardBatch) -> None:
    """Numbers of one batch of decodes into the tensors of another of the same sizes."""
    for field in fields(ForwardBatch):
        ours, theirs = getattr(target, field.name), getattr(source, field.name)
        if isinstance(ours, Tensor):
            ours.copy_(theirs)
    if target.decodes is not None and source.decodes is not None:
        target.decodes.block_tables.copy_(source.decodes.block_tables)
        target.decodes.kv_lengths.copy_(source.decodes.kv_lengths)
