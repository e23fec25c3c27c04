"""Steps of the model without scheduler, sampler or HTTP: batches laid out by hand, and the decoders that run them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loadtests.common.errors import LoadTestError
from onebasis.coefficients.arena import Arena
from onebasis.core.ids import BASE_SLOT
from onebasis.kernels.cpu.build import CannotBuild, build_library
from onebasis.kernels.cpu.library import BLOCK_SIZE, Library
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.native_decoder import NativeDecoder, Quantization, TaskTable, why_not

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sequences of one length in one step.

    n_seqs: of the step. n_cached: tokens of each that are in the cache. n_new: tokens of each in this step.
    room: tokens that the blocks of each hold; steps over the same cache have the same room.
    """

    n_seqs: int
    n_cached: int
    n_new: int
    room: int

    @property
    def n_tokens(self) -> int:
        return self.n_seqs * self.n_new

    @property
    def n_blocks(self) -> int:
        """Of one sequence; those of the next one lie behind them."""
        return -(-self.room // BLOCK_SIZE)


def random_tokens(n_seqs: int, n_tokens: int, *, n_vocab: int, seed: int) -> Tensor:
    """[n_seqs, n_tokens] int64."""
    return torch.randint(n_vocab, (n_seqs, n_tokens), generator=torch.Generator().manual_seed(seed))


def make_batch(shape: Shape, tokens: Tensor, slots: Sequence[int]) -> ForwardBatch:
    """The last new token of each sequence is sampled.

    Args:
        tokens: [n_seqs, n_new]. slots: of the sequences' tasks, BASE_SLOT for bare.
    """
    end = shape.n_cached + shape.n_new
    tables = torch.arange(shape.n_seqs * shape.n_blocks).view(shape.n_seqs, shape.n_blocks)
    positions = torch.arange(shape.n_cached, end).repeat(shape.n_seqs)
    first_row = torch.arange(shape.n_seqs).repeat_interleave(shape.n_new) * shape.n_blocks * BLOCK_SIZE
    token_slots = torch.tensor(slots, dtype=torch.int32).repeat_interleave(shape.n_new)
    chunks = tuple(
        PrefillChunk(i * shape.n_new, (i + 1) * shape.n_new, tables[i], end, slots[i]) for i in range(shape.n_seqs)
    )
    return ForwardBatch(
        token_ids=tokens.flatten().contiguous(),  # a view may still have the stride of its table
        positions=positions,
        kv_rows=first_row + positions,
        token_slots=None if all(slot == BASE_SLOT for slot in slots) else token_slots,
        logit_rows=torch.arange(1, shape.n_seqs + 1) * shape.n_new - 1,
        decodes=DecodeGroup(tables, torch.full((shape.n_seqs,), end)) if shape.n_new == 1 else None,
        chunks=() if shape.n_new == 1 else chunks,
    )


def native_decoder(
    base: LoadedBase,
    basis: Basis | None,
    arena: Arena | None,
    *,
    n_blocks: int,
    max_step_tokens: int,
    quantization: Quantization | None = None,
) -> NativeDecoder:
    """The compiled decoder; takes over the layers of `base`.

    Raises:
        LoadTestError: this machine or model can't have it.
    """
    try:
        reason = why_not(base, BLOCK_SIZE)
        library = Library(build_library()) if reason is None else None
    except (CannotBuild, OSError, RuntimeError) as error:
        reason, library = str(error), None
    if library is None:
        raise LoadTestError(f"the native decoder can't run here: {reason}")
    return NativeDecoder(
        base,
        basis,
        None if arena is None else TaskTable(arena.table, arena.site_offsets),
        library,
        n_blocks=n_blocks,
        max_step_tokens=max_step_tokens,
        max_model_len=int(base.text_config.max_position_embeddings),
        n_threads=torch.get_num_threads(),
        quantization=quantization,
    )
