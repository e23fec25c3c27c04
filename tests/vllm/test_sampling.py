"""What a request asks of vLLM, and what is refused because vLLM would do something else."""

import pytest

from onebasis.core.errors import InvalidParameter, UnsupportedParameter
from onebasis.core.request import SamplingParams
from onebasis.engine.vllm.sampling import vllm_sampling
from onebasis.vllm_plugin.control import request_arguments
from tests.engine.builders import make_request

NO_TASK = request_arguments(None)


class Digits:
    """A constraint by its text alone."""

    lark = "start: /[0-9]+/"

    def start(self) -> None:
        raise NotImplementedError


def sampling(**params):
    return vllm_sampling(make_request("r", (5, 6), sampling=SamplingParams(**params)), NO_TASK)


@pytest.mark.parametrize("temperature", [1e-5, 0.009, 2.001, 1e308])
def test_a_temperature_that_vllm_would_change_is_refused(temperature):
    with pytest.raises(InvalidParameter, match=r"temperature: is .*, the vLLM engine takes 0, or 0.01 to 2") as refused:
        sampling(temperature=temperature)
    assert refused.value.param == "temperature"


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 0.0), (1e-9, 0.0), (0.01, 0.01), (1.0, 1.0), (2.0, 2.0)])
def test_any_other_temperature_is_kept(ours, theirs):
    assert sampling(temperature=ours).temperature == theirs


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (7, 7), (-1, 2**64 - 1), (2**63 - 1, 2**63 - 1), (2**63, 2**63)])
def test_every_seed_is_a_seed(ours, theirs):
    assert sampling(seed=ours).seed == theirs


def test_what_the_answer_is_drawn_by_is_passed_on():
    filters = {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1}
    penalties = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.5}
    found = sampling(**filters, **penalties, logit_bias={7: -3.0}, n_logprobs=2, n_prompt_logprobs=0)
    for name, value in (filters | penalties).items():
        assert getattr(found, name) == value, name
    assert (found.logit_bias, found.logprobs, found.prompt_logprobs) == ({7: -3.0}, 2, 0)


def test_only_the_tokens_that_we_name_end_an_answer():
    request = make_request("r", (5, 6), max_tokens=9, min_tokens=3, stop_token_ids=frozenset({4, 1}))
    found = vllm_sampling(request, NO_TASK)
    assert (found.ignore_eos, found.stop_token_ids, found.max_tokens, found.min_tokens) == (True, [1, 4], 9, 3)


def test_a_grammar_is_passed_on_as_lark():
    found = vllm_sampling(make_request("r", (5,), constraint=Digits()), NO_TASK)
    assert found.structured_outputs.grammar == Digits.lark


def test_logprobs_of_an_answer_with_a_grammar_are_refused():
    """vLLM takes them after the grammar's mask, the API promises the model's own."""
    request = make_request("r", (5,), constraint=Digits(), sampling=SamplingParams(n_logprobs=0))
    with pytest.raises(UnsupportedParameter, match="logprobs is not supported by this server; vLLM has none"):
        vllm_sampling(request, NO_TASK)


def test_what_vllm_refuses_is_refused_by_its_name():
    with pytest.raises(InvalidParameter, match="vLLM refuses it: presence_penalty must be in") as refused:
        sampling(presence_penalty=3.0)
    assert refused.value.param
