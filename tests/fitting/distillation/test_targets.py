"""The loss is the divergence from what the original said, tail included, and zero for the original itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.distillation.targets import N_KEPT, TaughtExample, divergences, taught_examples
from onebasis.fitting.packing import pack
from onebasis.model.loader import LoadedBase
from tests.fitting.tiny import random_updates, token_example

ANSWERED = [
    token_example([7, 8, 9], [60, 61, 62]),
    token_example([7, 8, 20, 30], [40, 41]),
    token_example([50], [51, 52, 53, 54]),
]


@pytest.fixture
def taught(base: LoadedBase) -> list[TaughtExample]:
    with applied_updates(base, random_updates(base)):
        return taught_examples(base, ANSWERED, batch_size=2)


def divergence(base: LoadedBase, taught: list[TaughtExample]) -> Tensor:
    return divergences(base, [pack([one.example for one in taught])], [taught])[0]


@torch.no_grad()
def distributions(base: LoadedBase) -> Tensor:
    """[n_answer_tokens, n_vocab] float64, one example after the other."""
    rows = []
    for example in ANSWERED:
        tokens = torch.tensor([[*example.prompt_ids, *example.answer_ids[:-1]]])
        rows.append(base.model(input_ids=tokens).logits[0, len(example.prompt_ids) - 1 :])
    return F.softmax(torch.cat(rows).double(), dim=-1)


@torch.no_grad()
def test_the_original_itself_has_no_loss(base: LoadedBase, taught: list[TaughtExample]) -> None:
    with applied_updates(base, random_updates(base)):
        assert float(divergence(base, taught)) == pytest.approx(0.0, abs=1e-6)


@torch.no_grad()
def test_the_loss_is_the_divergence_with_the_unlikely_tokens_as_one(
    base: LoadedBase, taught: list[TaughtExample]
) -> None:
    found = distributions(base)
    with applied_updates(base, random_updates(base)):
        wanted = distributions(base)
    whole = float((wanted * (wanted / found).log()).sum(dim=-1).mean())
    kept = wanted.topk(N_KEPT, dim=-1).indices
    p, q = wanted.gather(-1, kept), found.gather(-1, kept)
    rest_p, rest_q = 1 - p.sum(dim=-1), 1 - q.sum(dim=-1)
    expected = float(((p * (p / q).log()).sum(dim=-1) + rest_p * (rest_p / rest_q).log()).mean())
    loss = float(divergence(base, taught))
    assert loss == pytest.approx(expected, rel=1e-3)
    assert 0.5 * whole < loss <= whole, "the kept tokens hold most of it"


@torch.no_grad()
def test_each_example_keeps_its_own_rows(base: LoadedBase, taught: list[TaughtExample]) -> None:
    assert [len(one.log_probs) for one in taught] == [3, 2, 4]
    for one in taught:
        torch.testing.assert_close(one.log_probs.exp().sum(dim=-1), torch.ones(len(one.log_probs)))
    together = float(divergence(base, taught))
    apart = sum(float(divergence(base, [one])) * len(one.log_probs) for one in taught) / 9
    assert together == pytest.approx(apart, rel=1e-4)
