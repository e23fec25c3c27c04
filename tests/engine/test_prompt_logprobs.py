"""Log-probabilities of a prompt's own tokens: what transformers computes, however the prompt was cut into steps."""

import pytest
import torch

from onebasis.core.request import SamplingParams, TokenLogprobs
from onebasis.engine.sampler import score_tokens
from onebasis.engine.scheduler import ScheduledRun
from onebasis.engine.sequence import EngineSequence
from tests.engine.builders import make_request
from tests.engine.engines import answers_of, ask
from tests.model.tasks import merged_copy

SCORED = SamplingParams(temperature=0.0, n_prompt_logprobs=2)


def by_transformers(model, token_ids):
    """[n_tokens - 1] of each token behind those before it."""
    with torch.inference_mode():
        table = model(input_ids=torch.tensor([token_ids])).logits[0].float().log_softmax(-1)
    return [table[i, token].item() for i, token in enumerate(token_ids[1:])]


def check_scores(model, request, answer):
    first, *others = answer.events
    found = [entry.chosen for entry in first.prompt_logprobs]
    assert found == pytest.approx(by_transformers(model, request.prompt_ids), abs=2e-5)
    for entry, token in zip(first.prompt_logprobs, request.prompt_ids[1:], strict=True):
        assert len(entry.top) == 2
        assert dict(entry.top).get(token, entry.chosen) == entry.chosen, "the same float, to the bit"
        assert entry.top[0][1] >= entry.chosen
    assert all(event.prompt_logprobs is None for event in others)


@pytest.mark.parametrize("max_step_tokens", [4, 12, 100])
def test_scores_are_those_of_transformers_in_chunks_of_any_size(world, max_step_tokens):
    asked = [ask(f"r-{n}", n, sampling=SCORED, max_tokens=3) for n in (1, 2, 11, 30)]
    plain = ask("plain", 9, max_tokens=5)
    answers_of(world.engine(max_step_tokens=max_step_tokens), [*asked, plain])
    for request, answer in asked:
        check_scores(world.base.model, request, answer)
    assert plain[1].events[0].prompt_logprobs is None


def test_scores_of_a_task_are_those_of_its_merged_model(world):
    asked = [ask(f"r-{i}", 14, task=task.resolved, sampling=SCORED) for i, task in enumerate(world.tasks[:2])]
    answers_of(world.engine(), asked)
    for task, (request, answer) in zip(world.tasks, asked, strict=False):
        check_scores(merged_copy(world.base.model, world.basis, task), request, answer)


def test_a_preempted_prompt_is_scored_once(world):
    asked = [ask(f"r-{i}", 13, sampling=SCORED, max_tokens=14) for i in range(4)]
    parts = world.engine(n_blocks=10, max_step_tokens=8)
    answers_of(parts, asked)
    assert parts.count("vllm:num_preemptions_total") > 0
    for request, answer in asked:
        check_scores(world.base.model, request, answer)


def test_scoring_changes_no_token(world):
    def asked(sampling):
        return [ask(f"r-{n}", n, sampling=sampling) for n in (3, 25)]

    plain = answers_of(world.engine(), asked(SamplingParams(temperature=0.0)))
    assert answers_of(world.engine(), asked(SCORED)) == plain


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 200])
def test_scores_come_in_pieces_without_a_seam(n_rows):
    logits = torch.randn(n_rows, 50, generator=torch.Generator().manual_seed(n_rows)).to(torch.bfloat16)
    token_ids = [(7 * i) % 50 for i in range(n_rows)]
    expected = logits.double().log_softmax(-1)
    found = score_tokens(logits, token_ids, n_top=3)
    for row, token, entry in zip(expected, token_ids, found, strict=True):
        assert entry.chosen == pytest.approx(row[token].item(), abs=1e-5)
        assert entry.top[0][1] == pytest.approx(row.max().item(), abs=1e-5)


def test_positions_that_are_known_are_not_scored_again_after_a_preemption():
    sequence = EngineSequence(make_request("a", tuple(range(100, 110)), sampling=SCORED), arrived_s=0.0)
    assert ScheduledRun(sequence, 0, 6).scored == range(6)
    sequence.prompt_logprobs += [TokenLogprobs(-1.0, ())] * 6
    assert ScheduledRun(sequence, 0, 10).scored == range(6, 9)
    assert len(ScheduledRun(sequence, 0, 4).scored) == 0
