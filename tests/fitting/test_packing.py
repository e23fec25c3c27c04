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
from onebasis.fitting.packed_attention import packed_logits
from onebasis.fitting.packing import PackedBatch, Padding, pack
from onebasis.fitting.training.answers import answer_losses
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


def losses_alone(base: LoadedBase, examples: Sequence[TokenExample]) -> Tensor:
    """[n_answer_tokens], each example computed by itself, as any text would be."""
    losses: list[Tensor] = []
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        logits = base.model(input_ids=ids).logits[0, len(example.prompt_ids) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(example.answer_ids), reduction="none"))
    return torch.cat(losses)


@torch.no_grad()
def hidden_logits(base: LoadedBase, batch: PackedBatch) -> Tensor:
    """[n_tokens, n_vocab] of every token of the pack."""
    return packed_logits(base, [replace(batch, answer_rows=torch.arange(batch.n_tokens))])[0]


@every_batch
def test_loss_is_that_of_the_examples_alone(kind: str, base: LoadedBase) -> None:
    examples = examples_of(kind)
    with torch.no_grad():
        packed, alone = answer_losses(base, [pack(examples)])[0], losses_alone(base, examples).mean()
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


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
        packed, alone = answer_losses(base, [pack(examples)])[0], losses_alone(base, examples).mean()
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


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
        token_ids[own.start : own.stop] += 100
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
    assert batch.token_ids.tolist() == [*examples[0].prompt_ids[:n_shared], *chain.from_iterable(rests)]
    positions = [*range(n_shared), *(n_shared + i for rest in rests for i in range(len(rest)))]
    assert batch.positions.tolist() == positions
    assert batch.answer_ids.tolist() == [token for example in examples for token in example.answer_ids]
    assert len(batch.answer_rows) == len(batch.answer_ids)
    assert (batch.n_tokens, batch.n_shared, batch.rests) == (len(positions), n_shared, tuple(map(len, rests)))


def test_padding_repeats_a_rows_last_token_and_knows_the_place_of_each() -> None:
    padding = Padding.of([2, 3, 1])
    assert padding.rows.tolist() == [[0, 1, 1], [2, 3, 4], [5, 5, 5]]
    assert padding.places.tolist() == [0, 1, 3, 4, 5, 6]


def test_a_shared_prefix_costs_its_tokens_once() -> None:
    long_prompt = list(range(10, 60))
    batch = pack([token_example([*long_prompt, 100 + i, 3], [200 + i, EOS_ID]) for i in range(8)])
    assert batch.n_tokens == 50 + 8 * 3


def test_batches_in_one_sequence_do_not_see_each_other(base: LoadedBase) -> None:
    batches = [pack(examples_of(kind)) for kind in EXAMPLES]
    together = packed_logits(base, batches)
    for batch, logits in zip(batches, together, strict=True):
        torch.testing.assert_close(logits, packed_logits(base, [batch])[0], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_examples_alone(base: LoadedBase) -> None:
    """Through the prefix that all share and through the padding of the shorter ones."""
    examples = examples_of("prefix shared")
    weight = base.model.get_parameter("model.layers.0.self_attn.k_proj.weight").requires_grad_()
    answer_losses(base, [pack(examples)])[0].backward()
    packed, weight.grad = weight.grad, None
    losses_alone(base, examples).mean().backward()
    torch.testing.assert_close(packed, weight.grad, rtol=1e-4, atol=1e-5)


def test_the_models_own_attention_is_back_afterwards(base: LoadedBase) -> None:
    usual = base.model.config._attn_implementation
    packed_logits(base, [pack(examples_of("alone"))])
    assert base.model.config._attn_implementation == usual
