"""Padding of decode steps, and replay of recorded ones, on the CPU: the recording alone needs a GPU."""

from functools import partial

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from onebasis.core.ids import BASE_SLOT
from onebasis.model.attention import GatherStep
from onebasis.model.batch import DecodeGroup, ForwardBatch
from onebasis.model.decode_graphs import DecodeGraphs, graph_sizes, pad_decodes
from onebasis.model.flex_attention import FlexStep
from tests.engine.builders import make_request
from tests.model.families import prompt, tiny_base
from tests.model.stepping import Stepper
from tests.model.tasks import random_basis, random_task
from tests.model.test_attention import flex_by_blocks

LENGTHS = ((0, 7, 9), (1, 3, 12), (2, 2, 5), (3, 1, 8), (9, 4, 6))
"""(step of arrival, tokens of the prompt, tokens to generate)"""


class Replays:
    """Records like a CUDA graph: only what the recorded batch's tensors hold at a replay counts."""

    def __init__(self):
        self.recorded = []
        self.replayed = []

    def __call__(self, forward, batch):
        self.recorded.append(batch)
        return lambda: self.replayed.append(batch) or forward(batch)


def run(base, basis, *, record=None, attention=None, max_seqs=4):
    """Traces of sequences, some of them with tasks."""
    stepper = Stepper(base, basis)
    if attention is not None:
        stepper._decoder._attention = attention
    if record is not None:
        sizes = {"max_seqs": max_seqs, "max_model_len": 64}
        stepper._decoder = DecodeGraphs(stepper._decoder, **sizes, with_tasks=True, record=record)
    tasks = [random_task(basis.spec, 1).resolved, None, random_task(basis.spec, 2).resolved]
    return stepper.run(
        [
            (at_step, make_request(str(i), prompt(n_prompt, seed=i), max_tokens=n_output, task=tasks[i % 3]))
            for i, (at_step, n_prompt, n_output) in enumerate(LENGTHS)
        ]
    )


def assert_same(traces, wanted):
    for name, trace in traces.items():
        assert trace.answer == wanted[name].answer
        torch.testing.assert_close(trace.logits, wanted[name].logits, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("max_seqs", [4, 3])
def test_replayed_steps_give_what_plain_ones_give(tmp_path, max_seqs):
    basis = random_basis(tiny_base(), tmp_path)
    replays = Replays()
    traces = run(tiny_base(), basis, record=replays, max_seqs=max_seqs)
    assert_same(traces, run(tiny_base(), basis))
    used = {(batch.decodes.n_seqs, batch.token_slots is not None) for batch in replays.replayed}
    assert {n_seqs for n_seqs, _ in used} == {1, 2, max_seqs}
    assert {has_tasks for _, has_tasks in used} == {True, False}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_replayed_steps_that_attend_where_the_blocks_lie(tmp_path, monkeypatch, family):
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    basis = random_basis(tiny_base(family), tmp_path)
    attention = partial(FlexStep, flex=flex_by_blocks)
    traces = run(tiny_base(family), basis, record=Replays(), attention=attention)
    assert_same(traces, run(tiny_base(family), basis))


def test_each_size_is_recorded_with_and_without_tasks_the_largest_first(tmp_path):
    basis = random_basis(tiny_base(), tmp_path)
    replays = Replays()
    run(tiny_base(), basis, record=replays)
    found = [(batch.decodes.n_seqs, batch.token_slots is not None) for batch in replays.recorded]
    assert found == [(4, False), (4, True), (2, False), (2, True), (1, False), (1, True)]


@pytest.mark.parametrize(("max_seqs", "sizes"), [(1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8))])
def test_sizes_are_powers_of_two_and_the_most(max_seqs, sizes):
    assert graph_sizes(max_seqs) == sizes


def test_padding_is_base_tokens_in_the_scratch_block():
    ids = torch.tensor([5, 6])
    group = DecodeGroup(torch.tensor([[3, 1], [2, 0]]), torch.tensor([7, 4]))
    slots = torch.tensor([2, BASE_SLOT], dtype=torch.int32)
    batch = ForwardBatch(ids, torch.tensor([6, 3]), torch.tensor([6, 11]), slots, ids[:1], group, ())
    padded = pad_decodes(batch, 4, n_columns=3, scratch_block=9, block_size=4)
    assert padded.token_ids.tolist() == [5, 6, 0, 0]
    assert padded.positions.tolist() == [6, 3, 0, 0]
    assert padded.kv_rows.tolist() == [6, 11, 36, 36]
    assert padded.token_slots is not None
    assert padded.token_slots.tolist() == [2, BASE_SLOT, BASE_SLOT, BASE_SLOT]
    assert padded.token_slots.dtype is torch.int32
    assert padded.logit_rows.tolist() == [0, 1, 2, 3]
    assert padded.decodes is not None
    assert padded.decodes.block_tables.tolist() == [[3, 1, 9], [2, 0, 9], [9, 9, 9], [9, 9, 9]]
    assert padded.decodes.kv_lengths.tolist() == [7, 4, 1, 1]


@pytest.mark.parametrize(
    ("device", "attention", "can"), [("cuda", FlexStep, True), ("cuda", GatherStep, False), ("cpu", FlexStep, False)]
)
def test_steps_are_recorded_on_a_gpu_where_attention_gathers_nothing(device, attention, can):
    """The choice alone: gathering over tables of a fixed width would cost as much as the longest sequence."""
    decoder = Stepper(tiny_base())._decoder
    decoder.device, decoder._attention = torch.device(device), attention
    assert decoder.can_be_recorded is can
