"""One step's input as tensors. Built by engine/batch.py, read by the decoder and its attention."""

from dataclasses import dataclass

from torch import Tensor

from onebasis.coefficients.residual_cache import ResidentResidual


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """The step's single-token sequences, the first `n_seqs` tokens of the batch.

    block_tables: [n_seqs, max_blocks] int64 rows of the KV cache's blocks, padded with 0 past a sequence's end.
    kv_lengths: [n_seqs] int64, tokens each may see, its own included.
    """

    block_tables: Tensor
    kv_lengths: Tensor

    @property
    def n_seqs(self) -> int:
        return self.block_tables.shape[0]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """A run of one sequence's tokens, rows `start` to `end` of the batch.

    block_table: [n_blocks] int64, the blocks that hold the sequence's first `kv_length` tokens.
    kv_length: tokens of the sequence in the cache once this chunk is written, the chunk included.
    slot: arena slot of the sequence's task, BASE_SLOT for none.
    """

    start: int
    end: int
    block_table: Tensor
    kv_length: int
    slot: int


@dataclass(frozen=True, slots=True)
class ResidualRun:
    """Rows `start` to `end` of the batch, of one sequence, whose task has this beside the basis."""

    start: int
    end: int
    residual: ResidentResidual


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """A mixed batch of decode and prefill tokens of many tasks, flat: decodes first, then the chunks.

    token_ids, positions: [n_tokens] int64.
    kv_rows: [n_tokens] int64, where each token's key and value go: block * block_size + offset.
    token_slots: [n_tokens] int32, the arena slot of each token's task, BASE_SLOT for none; None when no token of
        the step has a task, and then nothing of the basis runs.
    logit_rows: [n_logits] int64, the tokens whose logits are wanted: those that sample, then those of prompts to score.
    residuals: the rows whose task has a residual; empty for most steps, and then nothing of it runs.
    """

    token_ids: Tensor
    positions: Tensor
    kv_rows: Tensor
    token_slots: Tensor | None
    logit_rows: Tensor
    decodes: DecodeGroup | None
    chunks: tuple[PrefillChunk, ...]
    residuals: tuple[ResidualRun, ...] = ()
