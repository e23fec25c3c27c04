"""Fidelity is what a plain computation with merged weights and plain greedy answers gives."""

import pytest
import torch
import torch.nn.functional as F

from onebasis.fitting.applied import applied_updates
from onebasis.fitting.data import TokenExample
from onebasis.fitting.fidelity import Fidelity, Updates, measure_fidelity
from onebasis.fitting.generation import greedy_answers, sampled_texts
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.loader import LoadedBase
from tests.fitting.tiny import random_updates, token_example

PROMPTS = [(7, 8, 9), (7, 8, 20, 30, 31), (40,), (50, 51), (7, 60), (61, 62, 63, 64)]


def answered_by(base: LoadedBase, updates: Updates) -> list[TokenExample]:
    with applied_updates(base, updates):
        answers = greedy_answers(base, PROMPTS, max_new_tokens=5)
    return [token_example(prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]


def scaled(updates: Updates, factor: float) -> dict[str, LowRankUpdate]:
    return {name: LowRankUpdate(b=factor * update.b, a=update.a) for name, update in updates.items()}


def test_the_original_agrees_with_itself(base: LoadedBase) -> None:
    original = random_updates(base)
    found = measure_fidelity(base, original, original, answered_by(base, original), batch_size=4)
    assert found.agreement == 1.0 and found.n_prompts == len(PROMPTS)
    assert found.kl == pytest.approx(0.0, abs=1e-6)


def test_agreement_is_the_share_of_equal_greedy_answers(base: LoadedBase) -> None:
    original = random_updates(base)
    candidate = scaled(original, 0.97)
    own, others = answered_by(base, original), answered_by(base, candidate)
    n_equal = sum(a.answer_ids == b.answer_ids for a, b in zip(own, others, strict=True))
    assert 0 < n_equal < len(PROMPTS), "choose another factor: this one tells nothing"
    found = measure_fidelity(base, original, candidate, own, batch_size=4)
    assert found.agreement == n_equal / len(PROMPTS)


@torch.no_grad()
def test_divergence_is_the_mean_over_the_answers_tokens(base: LoadedBase) -> None:
    original = random_updates(base)
    answered = answered_by(base, original)
    terms = []
    for example in answered:
        tokens = torch.tensor([[*example.prompt_ids, *example.answer_ids[:-1]]])
        with applied_updates(base, original):
            wanted = F.softmax(base.model(input_ids=tokens).logits[0, len(example.prompt_ids) - 1 :], dim=-1)
        found = F.softmax(base.model(input_ids=tokens).logits[0, len(example.prompt_ids) - 1 :], dim=-1)
        terms.append((wanted * (wanted / found).log()).sum(dim=-1))
    expected = float(torch.cat(terms).mean())
    assert expected > 0.1
    found = measure_fidelity(base, original, {}, answered, batch_size=4)
    assert found == Fidelity(kl=pytest.approx(expected, rel=1e-3), agreement=found.agreement, n_prompts=len(PROMPTS))


def test_an_answer_ends_with_the_first_end_token_or_when_it_is_full(base: LoadedBase) -> None:
    full = greedy_answers(base, PROMPTS, max_new_tokens=5)
    assert all(len(answer) == 5 for answer in full), "a random model says no end token by chance; choose other prompts"
    second = {answer[1] for answer in full}
    base.model.generation_config.eos_token_id = sorted(second)
    news: list[int] = []
    for answer, before in zip(
        greedy_answers(base, PROMPTS, max_new_tokens=5, batch_size=4, on_answers=news.append), full, strict=True
    ):
        n = next(place for place, token in enumerate(before, start=1) if token in second)
        assert answer == before[:n]
    assert news == [4, 2]


def test_sampled_texts_are_given_by_the_seed_alone(base: LoadedBase) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sampled_texts(base, (7, 8, 9), 5, max_new_tokens=6, seed=1, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first) == 5 and len(set(first)) > 1
    torch.manual_seed(6)
    assert sampled_texts(base, (7, 8, 9), 5, max_new_tokens=6, seed=1, batch_size=2) == first
    assert sampled_texts(base, (7, 8, 9), 5, max_new_tokens=6, seed=2, batch_size=2) != first
