"""Residuals in the engine: memory of their own, held from a request's first step to its end."""

import copy

import pytest
import torch

from onebasis.core.errors import ResidualMemoryFull
from onebasis.core.request import FinishReason
from tests.engine.engines import answers_of, ask, running
from tests.model.tasks import merged_copy, random_task

RANKS = {"q_proj": 2, "down_proj": 3}


@pytest.fixture(scope="module")
def tasks(world):
    """Two tasks with residuals of one size."""
    return [random_task(world.basis.spec, seed, ranks=RANKS) for seed in (101, 102)]


@pytest.fixture(scope="module")
def size_bytes(tasks):
    return sum(r.n_numbers for r in tasks[0].residuals.values()) * 4


def by_transformers(world, task, request):
    """Greedy tokens of the dense merged model."""
    model = merged_copy(copy.deepcopy(world.base.model), world.basis, task)
    ids = torch.tensor([request.prompt_ids])
    tokens = model.generate(input_ids=ids, max_new_tokens=request.max_tokens, do_sample=False, eos_token_id=None)
    return tokens[0, len(request.prompt_ids) :].tolist()


def test_a_mixed_batch_gives_the_tokens_of_the_merged_models(world, tasks):
    mixed = [*tasks, world.tasks[0], None]
    asked = [ask(f"r-{i}", 5 + i, task=mixed[i % 4] and mixed[i % 4].resolved) for i in range(8)]
    found = answers_of(world.engine(), asked)
    for i, (request, _) in enumerate(asked):
        if mixed[i % 4] is not None:
            assert found[i] == by_transformers(world, mixed[i % 4], request)


def test_a_shared_prompt_is_cached_by_residual_too(world, tasks):
    """Two files that differ in their residuals alone must not share keys and values."""
    plain = random_task(world.basis.spec, 101)
    prompt_ids = ask("any", 12)[0].prompt_ids
    parts = world.engine(n_blocks=60)
    found = []
    with running(parts):
        for i, task in enumerate((tasks[0], plain, tasks[0])):
            request, answer = ask(f"r-{i}", 12, seed=1, task=task.resolved)
            parts.engine.submit([request])
            answer.wait()
            found.append((answer.token_ids, answer.events[0].n_cached_tokens))
            assert found[-1][0] == by_transformers(world, task, request)
    assert len(prompt_ids) == 12
    assert [n for _, n in found] == [0, 0, 8]


def test_a_preempted_request_keeps_its_residual_and_its_tokens(world, tasks, size_bytes):
    """Room for one residual: if the preempted one let go of its own, it could not come back."""
    asked = [ask(name, n, max_tokens=16, task=tasks[0].resolved) for name, n in (("old", 7), ("young", 5))]
    parts = world.engine(n_blocks=6, residual_bytes=size_bytes)
    found = answers_of(parts, asked)
    assert parts.count("vllm:num_preemptions_total") > 0
    assert found == [by_transformers(world, tasks[0], request) for request, _ in asked]


def test_without_memory_for_one_more_residual_its_request_alone_is_refused(world, tasks, size_bytes):
    parts = world.engine(residual_bytes=size_bytes)
    first, second = (ask(f"{i}", max_tokens=9, task=task.resolved) for i, task in enumerate(tasks))
    others = [ask(f"o-{i}", max_tokens=9, task=task and task.resolved) for i, task in enumerate([world.tasks[0], None])]
    asked = [first, second, *others]
    parts.engine.submit([request for request, _ in asked])
    with running(parts):
        endings = [answer.wait() for _, answer in asked]
        assert [ending.finish for ending in endings] == [
            FinishReason.LENGTH,
            FinishReason.ERROR,
            FinishReason.LENGTH,
            FinishReason.LENGTH,
        ]
        assert isinstance(endings[1].error, ResidualMemoryFull)
        again, answer = ask("again", max_tokens=9, task=tasks[1].resolved)
        parts.engine.submit([again])
        assert answer.wait().finish is FinishReason.LENGTH, "the first one's memory is free by now"
        assert parts.engine.snapshot().residual_bytes == size_bytes
    assert answer.token_ids == by_transformers(world, tasks[1], again)
    parts.check_all_is_free()
