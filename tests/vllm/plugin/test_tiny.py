"""Tasks in vLLM's workers on the tiny model: the native engine's greedy answers in float32, with compilation on."""

import pytest

from onebasis.vllm_plugin.control import engine_arguments, request_arguments
from onebasis.vllm_plugin.names import missing_names
from onebasis.vllm_plugin.versions import SUPPORTED, check_vllm
from tests.vllm.plugin.conftest import N_SLOTS
from tests.vllm.plugin.offline import Ask, OfflineVllm, native_answers

PROMPT = tuple(range(40, 59))
FORMS = ("core", "diag", "vector")


def prompt(i: int, n: int = 19) -> tuple[int, ...]:
    return tuple(30 + (7 * i + 3 * j) % 250 for j in range(n))


def test_the_installed_vllm_has_every_name_that_the_plugin_uses():
    assert missing_names() == []
    assert check_vllm().startswith(SUPPORTED)


def test_tasks_of_all_forms_answer_as_in_the_native_engine_alone_and_mixed(vllm, tiny):
    asks = [Ask(tiny.task(seed, form), prompt(seed)) for seed, form in enumerate(FORMS * 2)]
    asks.insert(2, Ask(None, prompt(0)))
    asks.append(Ask(None, prompt(1, n=130)))
    wanted = native_answers(tiny.folder, tiny.basis_path, asks)
    table = vllm.table(N_SLOTS)
    assert len({tuple(answer) for answer in wanted}) == len(asks), "the tasks change the answers"
    assert vllm.answers(asks, table) == wanted
    assert [vllm.answers([ask], table)[0] for ask in asks] == wanted


def test_a_request_without_a_task_is_bit_for_bit_the_same_beside_tasks(vllm, tiny):
    bare = Ask(None, prompt(3))
    table = vllm.table(4)
    alone = vllm.answers([bare], table)
    mixed = vllm.answers([Ask(tiny.task(1), prompt(4)), bare, Ask(tiny.task(2), prompt(5))], table)
    assert mixed[1] == alone[0]


def test_a_replaced_task_never_sees_the_old_one_s_cached_prefix(vllm, tiny):
    long_prompt = prompt(0, n=100)
    old, new = tiny.task(11), tiny.task(12)
    wanted = native_answers(tiny.folder, tiny.basis_path, [Ask(old, long_prompt), Ask(new, long_prompt)])
    table = vllm.table(1)
    first = vllm.outputs([Ask(old, long_prompt)], table)[0]
    again = vllm.outputs([Ask(old, long_prompt)], table)[0]
    assert again.num_cached_tokens >= 64, "the prefix is cached at all"
    replaced = vllm.outputs([Ask(new, long_prompt)], table)[0]
    assert replaced.num_cached_tokens == 0
    back = vllm.outputs([Ask(old, long_prompt)], table)[0]
    assert back.num_cached_tokens >= 64, "its own blocks are still its own"
    found = [list(output.outputs[0].token_ids) for output in (first, again, replaced, back)]
    assert found == [wanted[0], wanted[0], wanted[1], wanted[0]]
    base = vllm.outputs([Ask(None, long_prompt)], table)[0]
    assert base.num_cached_tokens == 0


def test_more_tasks_than_rows_take_turns_and_answer_rightly(vllm, tiny):
    asks = [Ask(tiny.task(20 + seed), prompt(seed)) for seed in range(7)]
    wanted = native_answers(tiny.folder, tiny.basis_path, asks)
    table = vllm.table(3)
    for order in ([0, 1, 2], [3, 4, 1], [5, 6, 0], [2, 1, 6], [4], [3, 5]):
        assert vllm.answers([asks[i] for i in order], table) == [wanted[i] for i in order]
        table.check_integrity()


def test_a_thousand_tasks_are_resident_together(vllm, tiny):
    table = vllm.table(N_SLOTS)
    tasks = [tiny.task(1000 + seed) for seed in range(N_SLOTS)]
    for task in tasks:
        table.release(vllm.acquire(table, task))
    assert table.n_resident == N_SLOTS
    asks = [Ask(tasks[i], prompt(i)) for i in (0, 1, 499, 500, 998, 999)]
    assert vllm.answers(asks, table) == native_answers(tiny.folder, tiny.basis_path, asks)


def test_a_row_that_is_not_there_and_half_a_task_are_refused(vllm, tiny):
    cores = tiny.task(0).flat_cores().tobytes()
    for row, data in ((N_SLOTS, cores), (-1, cores), (0, cores[:-4])):
        with pytest.raises(Exception, match="needed a row below 1000"):
            vllm.llm.collective_rpc("onebasis_put_task", args=(row, data))


def test_two_ranks_answer_as_one(vllm, tiny):
    two = OfflineVllm(tiny.folder, tiny.basis_path, n_slots=4, tensor_parallel_size=2, enforce_eager=True)
    asks = [Ask(tiny.task(30 + seed, form), prompt(seed)) for seed, form in enumerate(FORMS)]
    asks.insert(1, Ask(None, prompt(7)))
    assert two.answers(asks, two.table(4)) == vllm.answers(asks, vllm.table(4))


def test_without_a_basis_vllm_has_nothing_of_ours_but_the_worker_that_bears_seeds():
    assert engine_arguments(None, 100).keys() == {"worker_cls"}
    assert request_arguments(None).extra_args is None
