"""Pack a training batch into one sequence without padding, its common prefix computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebasis.fitting.data import TokenExample


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One flat sequence: the shared prefix, then each example's rest.

    token_ids, positions: [1, n_tokens] int64; an example's positions go on from the prefix.
    mask: [1, 1, n_tokens, n_tokens] bool, True where a token (row) may see another (column).
    answer_rows: [n_answer_tokens] int64, the tokens whose next token is part of an answer.
    answer_ids: [n_answer_tokens] int64, those next tokens.
    """

    token_ids: Tensor
    positions: Tensor
    mask: Tensor
    answer_rows: Tensor
    answer_ids: Tensor


def pack(examples: Sequence[TokenExample]) -> PackedBatch:
    """Pack at least one example. The prefix that all prompts share, at least one token short of each, comes once."""
    n_shared = _n_shared([example.prompt_ids for example in examples])
    token_ids = list(examples[0].prompt_ids[:n_shared])
    positions = list(range(n_shared))
    owners = [-1] * n_shared
    answer_rows: list[int] = []
    answer_ids: list[int] = []
    for owner, example in enumerate(examples):
        rest = [*example.prompt_ids[n_shared:], *example.answer_ids[:-1]]  # nothing follows the last token
        answer_end = len(token_ids) + len(rest)
        answer_rows += range(answer_end - len(example.answer_ids), answer_end)
        answer_ids += example.answer_ids
        positions += range(n_shared, n_shared + len(rest))
        owners += [owner] * len(rest)
        token_ids += rest
    owner_of = torch.tensor(owners)
    order = torch.arange(len(token_ids))
    same = owner_of.unsqueeze(1) == owner_of.unsqueeze(0)
    visible = (same | (owner_of == -1).unsqueeze(0)) & (order.unsqueeze(1) >= order.unsqueeze(0))
    return PackedBatch(
        token_ids=torch.tensor(token_ids).unsqueeze(0),
        positions=torch.tensor(positions).unsqueeze(0),
        mask=visible[None, None],
        answer_rows=torch.tensor(answer_rows),
        answer_ids=torch.tensor(answer_ids),
    )


def _n_shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix, at least one token short of every prompt."""
    n_shared = 0
    for column in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(column)) > 1:
            break
        n_shared += 1
    return n_shared
