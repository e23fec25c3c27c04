"""Which row each token of a step gets."""

import torch

from onebasis.vllm_plugin.step_rows import StepRows

BASE = 9


def make() -> StepRows:
    return StepRows(12, base_row=BASE, device=torch.device("cpu"))


def test_tokens_get_the_row_of_their_request_in_the_order_of_the_batch():
    step = make()
    step.follow([("a", 4), ("b", None), ("c", 0)], [])
    step.begin(["c", "b", "a"], [2, 3, 1])
    assert step.rows.tolist() == [0, 0, BASE, BASE, BASE, 4, *[BASE] * 6]
    assert step.n_task_tokens == 3


def test_a_shorter_step_leaves_nothing_of_the_one_before():
    step = make()
    step.follow([("a", 4)], [])
    step.begin(["a"], [7])
    step.begin(["a"], [1])
    assert step.rows.tolist() == [4, *[BASE] * 11]


def test_a_step_without_tasks_is_known_as_one_and_has_base_rows():
    step = make()
    step.follow([("a", 4), ("b", None)], [])
    step.begin(["a"], [7])
    step.begin(["b"], [3])
    assert step.n_task_tokens == 0
    assert step.rows.tolist() == [BASE] * 12


def test_an_id_that_ends_and_begins_in_one_step_is_the_new_request():
    step = make()
    step.follow([("a", 4)], [])
    step.follow([("a", 5)], ["a"])
    step.begin(["a"], [1])
    assert step.rows[0] == 5
    step.follow([("a", None)], ["a"])
    step.begin(["a"], [1])
    assert step.n_task_tokens == 0


def test_the_rows_stay_where_a_captured_graph_reads_them():
    step = make()
    address = step.rows.data_ptr()
    step.follow([("a", 4)], [])
    step.begin(["a"], [2])
    assert step.rows.data_ptr() == address
