"""A packed batch is nothing but its examples: the same loss, and none of them sees another."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from onebasis.fitting.data import TokenExample
from onebasis.fitting.packing import PackedBatch, pack
from onebasis.fitting.training.answers import answer_loss
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import EOS_ID, TinyModel
from tests.fitting.tiny import save_family, tiny_base, token_example

EXAMPLES = {
    "nothing shared": [([10, 11, 12], [20, EOS_ID]), ([13, 11], [21, 22, 23, EOS_ID]), ([14], [EOS_ID])],
    "prefix shared": [([10, 11, 12, 13], [20, EOS_ID]), ([10, 11, 14], [21, EOS_ID]), ([10, 11, 15, 16], [22])],
    "one prompt is a prefix of another": [([10, 11], [20, 21, EOS_ID]), ([10, 11, 12, 13], [20, EOS_ID])],
    "equal prompts": [([10, 11, 12], [20, EOS_ID]), ([10, 11, 12], [21, EOS_ID]), ([10, 11, 12], [EOS_ID])],
    "one token each": [([10], [20]), ([11], [21])],
    "alone": [([10, 11, 12], [20, 21, EOS_ID])],
}
N_SHARED = {
    "nothing shared": 0,
    "prefix shared": 2,
    "one prompt is a prefix of another": 1,
    "equal prompts": 2,
    "one token each": 0,
    "alone": 2,
}
every_batch = pytest.mark.parametrize("kind", EXAMPLES)


def examples_of(kind: str) -> list[TokenExample]:
    return [token_example(prompt, answer) for prompt, answer in EXAMPLES[kind]]


@torch.no_grad()
def loss_alone(base: LoadedBase, examples: Sequence[TokenExample]) -> Tensor:
    """Mean over all answer tokens, each example computed by itself, as any text would be."""
    losses: list[Tensor] = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        logits = base.model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="none"))
    return torch.cat(losses).mean()


@torch.no_grad()
def hidden_logits(base: LoadedBase, batch: PackedBatch) -> Tensor:
    """[n_tokens, n_vocab] of every token of the pack."""
    return base.model(
        input_ids=batch.token_ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).logits[0]


@every_batch
def test_loss_is_that_of_the_examples_alone(kind: str, base: LoadedBase) -> None:
    examples = examples_of(kind)
    with torch.no_grad():
        packed = answer_loss(base, pack(examples))
    torch.testing.assert_close(packed, loss_alone(base, examples), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        (LlamaConfig, {}),
        (MistralConfig, {"sliding_window": 16}),
        (Qwen2Config, {}),
        (Qwen3Config, {}),
        (Gemma2Config, {"sliding_window": 16}),  # eager attention, which adds its mask instead of choosing by it
        (Gemma3TextConfig, {"sliding_window": 16}),
    ],
)
def test_loss_is_that_of_the_examples_alone_in_every_family(config_class, changes, llama: TinyModel, tmp_path) -> None:
    base = tiny_base(save_family(llama, tmp_path, config_class, **changes))
    examples = examples_of("prefix shared")
    with torch.no_grad():
        packed = answer_loss(base, pack(examples))
    torch.testing.assert_close(packed, loss_alone(base, examples), rtol=1e-4, atol=1e-4)


@every_batch
def test_no_token_sees_another_example(kind: str, base: LoadedBase) -> None:
    examples = examples_of(kind)
    batch = pack(examples)
    before = hidden_logits(base, batch)
    start = N_SHARED[kind]
    for example in examples:
        own = range(start, start + len(example.prompt_ids) - N_SHARED[kind] + len(example.answer_ids) - 1)
        start = own.stop
        token_ids = batch.token_ids.clone()
        token_ids[0, own.start : own.stop] += 100
        after = hidden_logits(base, replace(batch, token_ids=token_ids))
        others = [row for row in range(len(before)) if row not in own]
        assert torch.equal(after[others], before[others])
        assert not torch.equal(after[own.stop - 1], before[own.stop - 1])
    assert start == len(before), "every token is of the shared prefix or of one example"


@every_batch
def test_layout(kind: str) -> None:
    examples, n_shared = examples_of(kind), N_SHARED[kind]
    batch = pack(examples)
    rests = [[*example.prompt_ids[n_shared:], *example.answer_ids[:-1]] for example in examples]
    assert batch.token_ids.tolist() == [[*examples[0].prompt_ids[:n_shared], *chain.from_iterable(rests)]]
    positions = [*range(n_shared), *(n_shared + i for rest in rests for i in range(len(rest)))]
    assert batch.positions.tolist() == [positions]
    assert batch.answer_ids.tolist() == [token for example in examples for token in example.answer_ids]
    assert len(batch.answer_rows) == len(batch.answer_ids)
    assert batch.mask.shape == (1, 1, len(positions), len(positions))
    assert batch.mask[0, 0].diagonal().all()
    assert not batch.mask[0, 0].triu(1).any()
    assert batch.mask[0, 0].sum(dim=1).tolist() == [position + 1 for position in positions]


def test_a_shared_prefix_costs_its_tokens_once() -> None:
    long_prompt = list(range(10, 60))
    batch = pack([token_example([*long_prompt, 100 + i, 3], [200 + i, EOS_ID]) for i in range(8)])
    assert batch.token_ids.shape == (1, 50 + 8 * 3)
