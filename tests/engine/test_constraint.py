"""Grammars: what the compiler refuses, and how an engine follows them in a mixed batch."""

import contextlib
import time
from dataclasses import replace

import numpy as np
import pytest
from llguidance import LLMatcher

from onebasis.core.errors import InvalidGrammar
from onebasis.core.request import FinishReason, SamplingParams
from onebasis.engine.constraint import MAX_GRAMMAR_CHARACTERS, GrammarCompiler
from tests.api.tiny_model import EOS_ID, save_tiny_model
from tests.engine.engines import SAMPLED, answers_of, ask
from tests.engine.test_loop import mixed_crowd
from tests.model.families import N_VOCAB

N_TINY_VOCAB = 320


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny")).tokenizer


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(tokenizer, n_vocab=N_TINY_VOCAB, eos_token_ids=frozenset({EOS_ID}))


def regex(compiler, text):
    return compiler.compile(LLMatcher.grammar_from_regex(text), param="p")


def test_only_tokens_of_the_grammar_are_allowed_and_it_ends_by_itself(compiler, tokenizer):
    state = regex(compiler, "cat|mat").start()
    assert state.allowed.shape == (N_TINY_VOCAB,)
    firsts = {tokenizer.decode([i]) for i in np.flatnonzero(state.allowed)}
    assert firsts <= {"c", "m", "ca", "ma", "cat", "mat"}
    for token in tokenizer("cat")["input_ids"]:
        assert not state.is_complete
        state.advance(token)
    assert state.is_complete


def test_the_end_of_sequence_is_allowed_where_the_grammar_may_end(compiler, tokenizer):
    state = regex(compiler, "[0-9]+").start()
    assert not state.allowed[EOS_ID]
    state.advance(tokenizer("7")["input_ids"][0])
    assert state.allowed[EOS_ID]
    assert not state.is_complete
    state.advance(EOS_ID)
    assert state.is_complete


def test_answers_do_not_share_their_state(compiler, tokenizer):
    grammar = regex(compiler, "cat|mat")
    first, second = grammar.start(), grammar.start()
    before = second.allowed.copy()
    first.advance(tokenizer("c")["input_ids"][0])
    assert (second.allowed == before).all()
    assert not (first.allowed == before).all()
    assert (grammar.start().allowed == before).all()


def test_a_token_outside_of_the_grammar_is_an_error(compiler):
    state = regex(compiler, "cat").start()
    with pytest.raises(InvalidGrammar):
        state.advance(int(np.flatnonzero(~state.allowed)[10]))


def test_the_same_text_is_compiled_once(compiler):
    assert regex(compiler, "a+b") is regex(compiler, "a+b")
    assert regex(compiler, "a+b") is not regex(compiler, "a+c")


@pytest.mark.parametrize(
    "grammar",
    [
        LLMatcher.grammar_from_regex("[a-"),
        LLMatcher.grammar_from_regex("(?=a)b"),
        LLMatcher.grammar_from_regex("a" * (MAX_GRAMMAR_CHARACTERS + 1)),
        LLMatcher.grammar_from_lark("start: nothing"),
        LLMatcher.grammar_from_lark("nonsense"),
        LLMatcher.grammar_from_json_schema('{"type": "nonsense"}'),
        LLMatcher.grammar_from_json_schema('{"allOf": [{"type": "string"}, {"type": "number"}]}'),
        LLMatcher.grammar_from_json_schema('{"$ref": "http://localhost/schema"}'),
        "",
        "{",
    ],
)
def test_a_grammar_that_can_not_be_used_is_refused_with_the_parameter(compiler, grammar):
    with pytest.raises(InvalidGrammar, match="my_field: ") as caught:
        compiler.compile(grammar, param="my_field")
    assert caught.value.param == "my_field"


def test_hostile_grammars_are_compiled_or_refused_in_no_time(compiler):
    hostile = [
        LLMatcher.grammar_from_regex("((a{0,1000}){0,1000}){0,1000}"),
        LLMatcher.grammar_from_regex("(.*a.{0,300}b){1,50}"),
        LLMatcher.grammar_from_regex("(" * 5000 + ")" * 5000),
        LLMatcher.grammar_from_lark('start: "a" start start | ""'),
        LLMatcher.grammar_from_lark("start: start | start"),
        LLMatcher.grammar_from_json_schema('{"type": "string", "minLength": 1000000000}'),
        LLMatcher.grammar_from_json_schema('{"$ref": "#"}'),
        LLMatcher.grammar_from_json_schema('{"items": ' * 400 + "{}" + "}" * 400),
    ]
    for grammar in hostile:
        started_s = time.monotonic()
        with contextlib.suppress(InvalidGrammar):
            compiler.compile(grammar, param="p").start()
        assert time.monotonic() - started_s < 2.0, grammar[:80]


class Script:
    """A constraint over token ids: at each place one set of them; it ends after the last."""

    lark = ""  # it is no text

    def __init__(self, *places, fails_at=None):
        self.places, self.fails_at = places, fails_at

    def start(self):
        return ScriptState(self)


class ScriptState:
    def __init__(self, script):
        self._script = script
        self._n = 0

    @property
    def allowed(self):
        return np.isin(np.arange(N_VOCAB), list(self._script.places[self._n]))

    @property
    def is_complete(self):
        return self._n == len(self._script.places)

    def advance(self, token_id):
        assert token_id in self._script.places[self._n]
        self._n += 1
        if self._n == self._script.fails_at:
            raise InvalidGrammar(None, "too complex")


SCRIPT = Script({3, 5, 8}, {7}, {1, 2, 9, 11}, {4, 6})


def constrained(request_id, script=SCRIPT, **fields):
    request, answer = ask(request_id, **fields)
    return replace(request, constraint=script), answer


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.0), SamplingParams(seed=4), SAMPLED], ids=str)
def test_the_answer_follows_the_grammar_and_ends_with_it(world, sampling):
    request, answer = constrained("a", sampling=sampling, max_tokens=50)
    (token_ids,) = answers_of(world.engine(), [(request, answer)])
    assert [token in place for token, place in zip(token_ids, SCRIPT.places, strict=True)] == [True] * 4
    assert answer.events[-1].finish is FinishReason.STOP


def test_max_tokens_cuts_a_grammar(world):
    request, answer = constrained("a", max_tokens=2)
    answers_of(world.engine(), [(request, answer)])
    assert answer.events[-1].finish is FinishReason.LENGTH


def test_a_grammar_hurts_nobody_else_in_the_batch(world):
    crowd = mixed_crowd(world, n=7)
    expected = answers_of(world.engine(), mixed_crowd(world, n=7))
    bound = [constrained(f"bound-{i}", sampling=SAMPLED, task=world.tasks[i].resolved) for i in range(3)]
    mixed = [pair for i, one in enumerate(crowd) for pair in ([bound[i]] if i < 3 else []) + [one]]
    answers_of(world.engine(), mixed)
    assert [answer.token_ids for _, answer in crowd] == expected
    alone = [constrained(f"bound-{i}", sampling=SAMPLED, task=world.tasks[i].resolved) for i in range(3)]
    assert [answers_of(world.engine(), [pair])[0] for pair in alone] == [answer.token_ids for _, answer in bound]


def test_preemption_keeps_the_place_in_the_grammar(world):
    long = Script(*({3 * i + 1, 3 * i + 2, 3 * i + 3} for i in range(20)))

    def asked():
        return [constrained(f"r-{i}", long, n_prompt=6, max_tokens=40, sampling=SAMPLED) for i in range(4)]

    roomy, tight = world.engine(), world.engine(n_blocks=10)
    expected = answers_of(roomy, asked())
    assert answers_of(tight, asked()) == expected
    assert tight.count("vllm:num_preemptions_total") > 0
    assert all(len(token_ids) == 20 for token_ids in expected)


def test_logprobs_stay_the_model_s_own(world):
    sampling = SamplingParams(temperature=0.0, n_logprobs=3)
    free_request, free = ask("a", sampling=sampling, max_tokens=1)
    bound_request, bound = constrained("a", sampling=sampling, max_tokens=1)
    answers_of(world.engine(), [(free_request, free)])
    answers_of(world.engine(), [(bound_request, bound)])
    assert bound.events[0].logprobs.top == free.events[0].logprobs.top
    assert bound.events[0].logprobs.chosen < bound.events[0].logprobs.top[-1][1]


def test_a_grammar_that_fails_on_the_way_ends_its_own_request_alone(world):
    failing = constrained("bad", Script({3}, {4}, {5}, fails_at=2), max_tokens=9)
    good = ask("good", max_tokens=9)
    answers_of(world.engine(), [failing, good])
    assert isinstance(failing[1].events[-1].error, InvalidGrammar)
    assert failing[1].token_ids == [3]
    assert good[1].events[-1].finish is FinishReason.LENGTH
