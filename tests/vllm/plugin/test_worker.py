"""What a worker checks and follows, without starting one."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.engine.arg_utils import EngineArgs

from onebasis.core.errors import UnsupportedVllm
from onebasis.vllm_plugin.step_rows import StepRows
from onebasis.vllm_plugin.worker import BasisWorker, check_config, watch_batches

NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"enable_lora": True}, "enable_lora"),
        ({"speculative_config": NGRAM}, "speculative_config"),
        ({"kv_sharing_fast_prefill": True}, "kv_sharing_fast_prefill"),
    ],
    ids=["enable_lora", "speculative_config", "kv_sharing_fast_prefill"],
)
def test_an_option_that_could_mix_up_tasks_is_refused_by_name(tiny, options, named):
    common = {"model": str(tiny.folder), "max_model_len": 128, "enforce_eager": True}
    check_config(EngineArgs(**common).create_engine_config())
    with pytest.raises(UnsupportedVllm, match=f"option {named} can't be used with a basis"):
        check_config(EngineArgs(**common, **options).create_engine_config())


def followed() -> StepRows:
    step = StepRows(8, base_row=9, device=torch.device("cpu"))
    step.follow([("a", 1), ("b", 2)], [])
    return step


def test_the_rows_follow_the_first_model_runner_s_order():
    step = followed()
    runner = SimpleNamespace(input_batch=SimpleNamespace(req_ids=["a", "b"]))

    def prepare(scheduler_output, num_scheduled_tokens):
        runner.input_batch.req_ids = ["b", "a"]  # vLLM may put decodes first
        return "prepared"

    runner._prepare_inputs = prepare
    watch_batches(runner, step)
    assert runner._prepare_inputs("scheduled", np.array([1, 3])) == "prepared"
    assert step.rows.tolist() == [2, 1, 1, 1, 9, 9, 9, 9]


def test_the_rows_follow_the_second_model_runner_s_order():
    """By its interface alone: this runner needs Triton, which vLLM's CPU build has not."""
    step = followed()
    batch = SimpleNamespace(req_ids=["b", "a"], num_scheduled_tokens=np.array([1, 3]))

    def prepare(scheduler_output, batch_req_state, batch_desc, num_active_loras):
        return batch

    runner = SimpleNamespace(prepare_inputs=prepare)
    watch_batches(runner, step)
    assert runner.prepare_inputs("scheduled", "state", "description", 0) is batch
    assert step.rows.tolist() == [2, 1, 1, 1, 9, 9, 9, 9]


def test_a_step_has_room_on_the_interpreter_s_stack():
    """What that is worth is tested in tests/vllm_plugin/test_stack_room.py."""

    class VllmWorker:
        def execute_model(self, scheduler_output):
            frame, sizes = sys._getframe(), []
            while frame is not None:
                sizes.append(frame.f_code.co_stacksize)
                frame = frame.f_back
            return max(sizes)

    class Worker(BasisWorker, VllmWorker):
        _step = followed()

    assert Worker().execute_model(SimpleNamespace(scheduled_new_reqs=[], finished_req_ids=set())) >= 16_384
