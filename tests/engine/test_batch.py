import pytest
import torch

from onebasis.core.ids import BASE_SLOT
from onebasis.engine.batch import build_batch, order_runs
from onebasis.engine.scheduler import ScheduledRun, StepPlan
from tests.engine.builders import make_sequence

CPU = torch.device("cpu")


def make_run(name, n_prompt, start, end, *, blocks, slot=BASE_SLOT, output_ids=()):
    """Tokens of the prompt are 100, 101 and so on."""
    sequence = make_sequence(name, n_prompt)
    sequence.output_ids = list(output_ids)
    sequence.n_computed = start
    sequence.blocks = blocks
    sequence.slot = slot
    return ScheduledRun(sequence, start, end)


def layout(*runs, block_size=4):
    ordered = order_runs(StepPlan(runs, (), ()))
    return ordered, build_batch(ordered, block_size=block_size, device=CPU)


@pytest.fixture
def mixed():
    """Two decodes and three chunks: one whole prompt, one middle part, one that ends in output tokens."""
    return layout(
        make_run("middle", 20, 5, 8, blocks=[7, 2, 9, 4, 5], slot=3),
        make_run("decode", 6, 8, 9, blocks=[6, 1, 8], slot=1, output_ids=[41, 42, 43]),
        make_run("whole", 2, 0, 2, blocks=[3]),
        make_run("decode-bare", 1, 1, 2, blocks=[0], output_ids=[51]),
        make_run("again", 3, 2, 6, blocks=[10, 11], slot=0, output_ids=[61, 62, 63]),
    )


def test_single_tokens_come_first_and_the_rest_keeps_its_order(mixed):
    runs, _ = mixed
    assert [run.sequence.request_id for run in runs] == ["decode", "decode-bare", "middle", "whole", "again"]


def test_tokens_positions_and_slots_of_a_mixed_batch(mixed):
    _, batch = mixed
    assert batch.token_ids.tolist() == [43, 51, 105, 106, 107, 100, 101, 102, 61, 62, 63]
    assert batch.positions.tolist() == [8, 1, 5, 6, 7, 0, 1, 2, 3, 4, 5]
    assert batch.token_slots.tolist() == [1, -1, 3, 3, 3, -1, -1, 0, 0, 0, 0]
    assert batch.token_slots.dtype is torch.int32


def test_each_token_is_written_into_its_own_block(mixed):
    _, batch = mixed
    assert batch.kv_rows.tolist() == [32, 1, 9, 10, 11, 12, 13, 42, 43, 44, 45]


def test_logits_are_wanted_where_a_sequence_is_complete(mixed):
    runs, batch = mixed
    assert [run.sequence.request_id for run in runs if run.samples] == ["decode", "decode-bare", "whole", "again"]
    assert batch.logit_rows.tolist() == [0, 1, 6, 10]


def test_decodes_are_one_padded_group(mixed):
    _, batch = mixed
    assert batch.decodes is not None
    assert batch.decodes.block_tables.tolist() == [[6, 1, 8], [0, 0, 0]]
    assert batch.decodes.kv_lengths.tolist() == [9, 2]
    assert batch.decodes.n_seqs == 2


def test_chunks_know_their_rows_and_only_the_blocks_so_far(mixed):
    _, batch = mixed
    found = [(chunk.start, chunk.end, chunk.block_table.tolist(), chunk.kv_length) for chunk in batch.chunks]
    assert found == [(2, 5, [7, 2], 8), (5, 7, [3], 2), (7, 11, [10, 11], 6)]


def test_a_chunk_of_one_token_is_computed_with_the_decodes():
    _, batch = layout(make_run("a", 9, 4, 5, blocks=[5, 6, 7]))
    assert batch.chunks == ()
    assert batch.decodes is not None
    assert batch.decodes.block_tables.tolist() == [[5, 6]]
    assert batch.logit_rows.tolist() == []
    assert batch.logit_rows.dtype is torch.int64


def test_without_decodes_there_is_no_group():
    _, batch = layout(make_run("a", 9, 0, 5, blocks=[5, 6, 7]))
    assert batch.decodes is None


def test_a_step_without_tasks_has_no_slots():
    _, batch = layout(make_run("a", 9, 0, 5, blocks=[5, 6, 7]), make_run("b", 3, 2, 3, blocks=[1]))
    assert batch.token_slots is None


def test_slot_zero_is_a_task():
    _, batch = layout(make_run("a", 3, 0, 2, blocks=[5], slot=0))
    assert batch.token_slots.tolist() == [0, 0]


@pytest.mark.parametrize(("start", "end", "token_ids"), [(0, 2, [100, 101]), (1, 4, [101, 102, 61]), (4, 6, [62, 63])])
def test_a_preempted_sequence_is_computed_again_in_any_chunks(start, end, token_ids):
    _, batch = layout(make_run("again", 3, start, end, blocks=[4, 2], output_ids=[61, 62, 63, 64]))
    assert batch.token_ids.tolist() == token_ids
    assert batch.positions.tolist() == list(range(start, end))
    assert batch.logit_rows.tolist() == []
