import copy

import pytest
import torch

from onebasis.model import adapted
from tests.engine.builders import make_request
from tests.model.families import FAMILIES, greedy_by_transformers, logits_by_transformers, prompt, tiny_base
from tests.model.stepping import Stepper
from tests.model.tasks import merged_copy, random_basis, random_task

# float32 on both sides, sums in another order: found up to 5e-6 bare and 8e-6 with a task, on logits of up to 5;
# the two best logits of a position are never closer than 2e-4
TOLERANCE = {"rtol": 1e-5, "atol": 5e-5}
# steps of 5 tokens: the first prompt takes 5 steps, later ones are chunked around the decodes of earlier ones
LENGTHS = ((0, 23, 14), (1, 3, 20), (3, 17, 9), (4, 1, 12), (9, 30, 6), (12, 8, 11))
"""(step of arrival, tokens of the prompt, tokens to generate)"""


def bare_arrivals():
    return [
        (at_step, make_request(f"bare-{i}", prompt(n_prompt, seed=i), max_tokens=n_output))
        for i, (at_step, n_prompt, n_output) in enumerate(LENGTHS)
    ]


def assert_follows(trace, model):
    """The trace is what this plain model does by itself."""
    torch.testing.assert_close(trace.logits, logits_by_transformers(model, trace.token_ids), **TOLERANCE)
    assert trace.answer == greedy_by_transformers(model, trace.prompt_ids, len(trace.answer))


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_sequences_are_computed_as_transformers_does(family):
    base = tiny_base(family)
    alone = copy.deepcopy(base.model)
    stepper = Stepper(base)
    traces = stepper.run(bare_arrivals())
    assert stepper.n_mixed_steps > 5
    for trace in traces.values():
        assert_follows(trace, alone)
    assert len({token for trace in traces.values() for token in trace.answer}) > 20, "a model that says little"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sequence_of_a_mixed_batch_follows_its_own_merged_model(family, tmp_path):
    base = tiny_base(family)
    alone = copy.deepcopy(base.model)
    basis = random_basis(base, tmp_path)
    tasks = [random_task(basis.spec, seed) for seed in range(3)]
    models = [merged_copy(alone, basis, task) for task in tasks] + [alone]
    arrivals = []
    expected = {}
    for i, (at_step, n_prompt, n_output) in enumerate(LENGTHS):
        who = i % len(models)
        task = tasks[who].resolved if who < len(tasks) else None
        request = make_request(f"request-{i}", prompt(n_prompt, seed=i), max_tokens=n_output, task=task)
        arrivals.append((at_step, request))
        expected[request.request_id] = models[who]
    stepper = Stepper(base, basis)
    traces = stepper.run(arrivals)
    assert stepper.n_mixed_steps > 5
    for request_id, trace in traces.items():
        assert_follows(trace, expected[request_id])
    of_task = traces["request-0"]
    assert of_task.answer != greedy_by_transformers(alone, of_task.prompt_ids, len(of_task.answer)), (
        "the task must matter"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_task_in_the_step_a_basis_changes_no_bit(family, tmp_path, monkeypatch):
    def must_not_run(*_):
        raise AssertionError("the basis ran in a step without tasks")

    without_basis = Stepper(tiny_base(family)).run(bare_arrivals())
    base = tiny_base(family)
    stepper = Stepper(base, random_basis(base, tmp_path))
    monkeypatch.setattr(adapted, "add_group_update_", must_not_run)
    with_basis = stepper.run(bare_arrivals())
    for request_id, trace in without_basis.items():
        assert with_basis[request_id].answer == trace.answer
        assert torch.equal(with_basis[request_id].logits, trace.logits)


def test_a_preempted_sequence_is_computed_again_to_the_same_logits(tmp_path):
    base = tiny_base("gemma2")
    basis = random_basis(base, tmp_path)
    arrivals = [
        (0, make_request(f"r-{i}", prompt(7 + i, seed=i), max_tokens=14, task=random_task(basis.spec, i).resolved))
        for i in range(4)
    ]
    roomy = Stepper(copy.deepcopy(base), basis).run(arrivals)
    tight = Stepper(base, basis, n_blocks=9)
    traces = tight.run(arrivals)
    assert tight.n_preempted > 0
    for request_id, trace in roomy.items():
        assert traces[request_id].answer == trace.answer
        torch.testing.assert_close(traces[request_id].logits, trace.logits, **TOLERANCE)
