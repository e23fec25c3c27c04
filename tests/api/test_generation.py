"""What a request brings reaches the engine, and what the engine tells of a prompt reaches the usage."""

import asyncio
import time

import pytest

from onebasis.api.generation import Generation, plan_generation
from onebasis.api.schemas import CompletionBody
from onebasis.core.request import FinishReason, TokenEvent
from onebasis.identity.caller import OPERATOR
from tests.api.tiny_model import BASE_NAME


class RecordingEngine:
    """Takes requests and answers each with one token, telling how much of the prompt was cached."""

    def __init__(self, services, n_cached):
        self.limits = services.engine.limits
        self.is_alive = True
        self.requests = []
        self._n_cached = n_cached

    def submit(self, requests):
        self.requests += requests
        for request, n_cached in zip(requests, self._n_cached, strict=True):
            request.sink(TokenEvent(request.request_id, 40, finish=FinishReason.LENGTH, n_cached_tokens=n_cached))

    def abort(self, request_id):
        raise AssertionError("every request had its ending")


@pytest.fixture
def run(server):
    services = server.parts.app.state.services

    def generate(n_cached, charge=lambda _: None, **body):
        checked = CompletionBody(model=BASE_NAME, **body)
        engine = RecordingEngine(services, n_cached)

        async def work():
            plan = plan_generation(
                checked,
                id_prefix="a",
                prompts=[services.text.encode(prompt) for prompt in checked.prompts()],
                prompt_param="prompt",
                max_tokens=checked.max_tokens,
                task=None,
                text=services.text,
                limits=engine.limits,
                caller=OPERATOR,
            )
            generation = Generation(plan, engine, services.text, charge).start()
            async for _ in generation.deltas():
                pass
            return generation

        return asyncio.run(work()), engine.requests

    return generate


def test_cached_tokens_of_a_prompt_count_once_however_many_choices_it_has(run):
    generation, _ = run([5, 9, 9, 2, 7, 7], prompt=["the cat", "a"], n=3)
    assert generation.n_cached_tokens == 5 + 2
    assert generation.n_completion_tokens == 6


def test_priority_and_time_limit_reach_the_engine(run):
    before_s = time.monotonic()
    _, (request,) = run([0], prompt="a", priority=-3, timeout=30.0)
    assert request.priority == -3
    assert before_s + 30 <= request.deadline_s <= time.monotonic() + 30
    _, (request,) = run([0], prompt="a")
    assert (request.priority, request.deadline_s) == (0, None)


def test_without_a_seed_no_two_answers_share_their_draws(run):
    _, requests = run([0] * 6, prompt=["the cat"] * 3, n=2)
    assert len({request.sampling.seed for request in requests}) == 6


def test_with_a_seed_a_prompt_is_answered_the_same_alone_and_in_a_batch(run):
    _, requests = run([0] * 6, prompt=["the cat"] * 3, n=2, seed=7)
    assert [request.sampling.seed for request in requests] == [7, 8] * 3


def test_tokens_are_charged_as_they_come(run):
    charged = []
    run([0, 0], charge=charged.append, prompt=["a", "a"])
    assert charged == [2, 1, 1]
