"""Pack training examples into one sequence without padding, the common prefix of a task's prompts computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onebasis.fitting.data import TokenExample


@dataclass(frozen=True)
class PackedBatch:
    """Examples of one task as one flat piece of a sequence: the shared prefix, then each example's rest.

    token_ids, positions: [n_tokens] int64; an example's positions go on from the prefix.
    n_shared: length of the prefix, which every example sees and which sees itself alone.
    rests: tokens of each example after the prefix; it sees the prefix and itself.
    answer_rows: [n_answer_tokens] int64, the tokens of the piece whose next token is part of an answer.
    answer_ids: [n_answer_tokens] int64, those next tokens.
    """

    token_ids: Tensor
    positions: Tensor
    n_shared: int
    rests: tuple[int, ...]
    answer_rows: Tensor
    answer_ids: Tensor

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @cached_property
    def padding(self) -> "Padding":
        return Padding.of(self.rests)


@dataclass(frozen=True, slots=True)
class Padding:
    """Ragged rows, one after another, as the rows of a rectangle.

    rows: [n_rows, longest] int64, the tokens of each row; past its end its own last token.
    places: [n_tokens] int64, where in the flattened rectangle each token is.
    """

    rows: Tensor
    places: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Padding":
        ends = torch.tensor(lengths).cumsum(0).unsqueeze(1)
        starts = ends - torch.tensor(lengths).unsqueeze(1)
        unbounded = starts + torch.arange(max(lengths))
        return cls(rows=unbounded.minimum(ends - 1), places=(unbounded < ends).flatten().nonzero().squeeze(1))


def pack(examples: Sequence[TokenExample]) -> PackedBatch:
    """Pack at least one example. The prefix that all prompts share, at least one token short of each, comes once."""
    n_shared = _n_shared([example.prompt_ids for example in examples])
    token_ids = list(examples[0].prompt_ids[:n_shared])
    positions = list(range(n_shared))
    rests: list[int] = []
    answer_rows: list[int] = []
    answer_ids: list[int] = []
    for example in examples:
        rest = [*example.prompt_ids[n_shared:], *example.answer_ids[:-1]]  # nothing follows the last token
        answer_end = len(token_ids) + len(rest)
        answer_rows += range(answer_end - len(example.answer_ids), answer_end)
        answer_ids += example.answer_ids
        positions += range(n_shared, n_shared + len(rest))
        rests.append(len(rest))
        token_ids += rest
    return PackedBatch(
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(positions),
        n_shared=n_shared,
        rests=tuple(rests),
        answer_rows=torch.tensor(answer_rows),
        answer_ids=torch.tensor(answer_ids),
    )


def start_rows(batches: Sequence[PackedBatch]) -> Iterator[int]:
    """Where each batch begins in the sequence that holds them all in order."""
    start = 0
    for batch in batches:
        yield start
        start += batch.n_tokens


def _n_shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix, at least one token short of every prompt."""
    n_shared = 0
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        n_shared += 1
    return n_shared
