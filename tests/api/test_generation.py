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

    def __init__(self, services, n_cached, token_id):
        self.limits = services.engine.limits
        self.is_alive = True
        self.requests = []
        self._n_cached = n_cached
        self._token_id = token_id

    def submit(self, requests):
        self.requests += requests
        for request, n_cached in zip(requests, self._n_cached, strict=True):
            request.sink(
                TokenEvent(request.request_id, self._token_id, finish=FinishReason.LENGTH, n_cached_tokens=n_cached)
            )

    def abort(self, request_id):
        raise AssertionError("every request had its ending")


class DropsTheFirstSpace:
    """The text of a model whose tokenizer is like Llama 2's: a text does not begin with a space."""

    def __init__(self, text):
        self._text = text
        self.eos_token_ids = text.eos_token_ids

    def encode(self, text):
        return self._text.encode(text)

    def decode(self, token_ids, *, skip_special_tokens):
        return self._text.decode(token_ids, skip_special_tokens=skip_special_tokens).removeprefix(" ")


@pytest.fixture
def run(server):
    services = server.parts.app.state.services

    def generate(n_cached, *, charge=lambda _: None, token_id=40, told=None, text=services.text, fields=None, **body):
        checked = CompletionBody(model=BASE_NAME, **body)
        engine = RecordingEngine(services, n_cached, token_id)

        async def work():
            plan = plan_generation(
                checked,
                id_prefix="a",
                prompts=[text.encode(prompt) for prompt in checked.prompts()],
                prompt_param="prompt",
                max_tokens=checked.max_tokens,
                task=None,
                text=text,
                limits=engine.limits,
                caller=OPERATOR,
                **(fields or {}),
            )
            generation = Generation(plan, engine, text, charge).start()
            async for delta in generation.deltas():
                if told is not None:
                    told.append(delta.text)
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


@pytest.mark.parametrize(("continues_text", "expected"), [(True, " cat"), (False, "cat")])
def test_a_continuation_keeps_its_first_space_and_a_chat_s_answer_does_not(run, server, continues_text, expected):
    text = DropsTheFirstSpace(server.parts.app.state.services.text)
    told = []
    fields = {"continues_text": continues_text}
    run([0], prompt="the", token_id=text.encode("the cat")[1], told=told, text=text, fields=fields)
    assert told == [expected]
