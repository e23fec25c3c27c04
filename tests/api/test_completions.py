"""POST /v1/completions: prompts, choices, limits, stops, sampling, log-probabilities, streams."""

import math

import pytest

from tests.api.server import TASKS, refused
from tests.api.tiny_model import BASE_NAME, EOS_ID, MAX_POSITIONS, N_VOCAB

PATH = "/v1/completions"
ONE_40 = {"max_tokens": 1, "logit_bias": {"40": 100}}


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def joined(events):
    """Text and finish reason by index of the choice, from a stream's chunks."""
    text, finish = {}, {}
    for event in events:
        for choice in event["choices"]:
            assert choice["index"] not in finish, "news of a choice that has ended"
            text[choice["index"]] = text.get(choice["index"], "") + choice["text"]
            if choice["finish_reason"] is not None:
                finish[choice["index"]] = choice["finish_reason"]
    return text, finish


def test_an_answer_has_the_shape_of_openai_s(server):
    answer = server.complete(prompt="the cat", max_tokens=5)
    assert answer.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices", "onebasis", "usage"}
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", BASE_NAME)
    assert answer["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
    assert answer["choices"][0]["logprobs"] is None
    details = {"cached_tokens": 0}
    counts = {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7, "prompt_tokens_details": details}
    assert answer["usage"] == counts


def test_the_four_kinds_of_prompt_are_the_same_prompt(server, tiny):
    ids = tiny.encode("the cat sat")
    as_text, as_texts, as_ids, as_id_lists = (
        server.complete(prompt=prompt) for prompt in ("the cat sat", ["the cat sat"], ids, [ids])
    )
    assert texts(as_text) == texts(as_texts) == texts(as_ids) == texts(as_id_lists)
    for answer in (as_text, as_texts, as_ids, as_id_lists):
        assert answer["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("prompt", [["the cat", "a", "on the mat"], [[10, 11, 12], [13], [14, 15]]])
def test_choices_are_numbered_prompt_by_prompt_n_for_each(server, prompt):
    answer = server.complete(prompt=prompt, n=2, temperature=1.0, seed=5)
    alone = [server.complete(prompt=one, n=2, temperature=1.0, seed=5) for one in prompt]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert texts(answer) == [text for one in alone for text in texts(one)]
    assert len(set(texts(answer))) == 6
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert answer["usage"]["completion_tokens"] == 6 * 8


def test_a_stop_string_ends_the_text_before_itself(server):
    whole = server.text("beta", max_tokens=24)
    stop = whole[9:11]
    answer = server.complete(model="beta", max_tokens=24, stop=stop)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert texts(answer) == [whole[: whole.index(stop)]]
    assert answer["usage"]["completion_tokens"] < 24


def test_the_first_of_several_stop_strings_counts(server):
    whole = server.text("beta", max_tokens=24)
    answer = server.complete(model="beta", max_tokens=24, stop=["not there", whole[12:14], whole[5:7]])
    assert texts(answer) == [whole[: whole.index(whole[5:7])]]


def test_a_stop_string_that_never_comes_changes_nothing(server):
    answer = server.complete(stop="\n\nnever\n\n")
    assert texts(answer) == [server.text(BASE_NAME)]
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stop_token_ends_the_answer_and_has_no_text(server):
    tokens = server.complete(max_tokens=6, logprobs=0, logit_bias={"40": 100})
    assert tokens["choices"][0]["finish_reason"] == "length"
    answer = server.complete(max_tokens=6, logit_bias={"40": 100}, stop_token_ids=[40])
    assert (texts(answer), answer["choices"][0]["finish_reason"]) == ([""], "stop")
    assert answer["usage"]["completion_tokens"] == 1


def test_the_end_of_sequence_token_stops_unless_told_to_ignore_it(server):
    forced = {"max_tokens": 3, "logit_bias": {str(EOS_ID): 100}}
    stopped = server.complete(**forced, ignore_eos=False)
    assert (texts(stopped), stopped["choices"][0]["finish_reason"]) == ([""], "stop")
    assert stopped["usage"]["completion_tokens"] == 1
    ignored = server.complete(**forced, ignore_eos=True)
    assert (ignored["usage"]["completion_tokens"], ignored["choices"][0]["finish_reason"]) == (3, "length")


def test_nothing_ends_an_answer_before_min_tokens(server):
    forced = {"max_tokens": 9, "min_tokens": 4, "logit_bias": {str(EOS_ID): 100, "40": 90}}
    answer = server.complete(**forced, ignore_eos=False)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (5, "stop")
    both = server.complete(**forced, ignore_eos=False, stop_token_ids=[40])
    assert both["usage"]["completion_tokens"] == 5 and texts(both) != texts(answer), "neither may come"
    whole = server.complete(**forced, ignore_eos=True)
    assert whole["usage"]["completion_tokens"] == 9, "a token that ends nothing may come from the start"


def test_a_stop_string_ends_an_answer_after_min_tokens(server):
    forced = {"max_tokens": 9, "logit_bias": {"40": 100}, "stop": "".join(texts(server.complete(**ONE_40)))}
    assert texts(server.complete(**forced)) == [""]
    (kept,) = texts(server.complete(**forced, min_tokens=3))
    assert kept == forced["stop"] * 3
    chunks = server.stream(PATH, prompt="the cat", **forced, min_tokens=3)
    assert joined(chunks)[0] == {0: kept}


def test_min_tokens_must_be_possible(server):
    refused(server.post(PATH, prompt="a", max_tokens=3, min_tokens=4), 400, "invalid_parameter", "min_tokens")
    shape = {"structured_outputs": {"choice": ["cat"]}}
    refused(server.post(PATH, prompt="a", min_tokens=1, **shape), 400, "invalid_parameter", "min_tokens")


def test_max_tokens_is_16_by_default(server):
    body = {"model": BASE_NAME, "prompt": "a", "ignore_eos": True}
    assert server.client.post(PATH, json=body).json()["usage"]["completion_tokens"] == 16


def test_a_prompt_may_fill_the_context_to_the_last_token(server):
    answer = server.complete(prompt=[7] * (MAX_POSITIONS - 1), max_tokens=1)
    assert answer["usage"]["total_tokens"] == MAX_POSITIONS


def test_temperature_0_is_greedy_and_a_seed_repeats_a_sample(server):
    assert server.text(BASE_NAME, seed=1) == server.text(BASE_NAME, seed=2)
    sampled = [server.text(BASE_NAME, temperature=1.5, seed=seed) for seed in (1, 2, 3, 1, 2, 3)]
    assert sampled[:3] == sampled[3:]
    assert len(set(sampled)) == 3


def test_without_a_seed_samples_differ(server):
    assert len({server.text(BASE_NAME, temperature=1.5) for _ in range(4)}) > 1


@pytest.mark.parametrize("filters", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_filter_that_leaves_one_token_makes_sampling_greedy(server, filters):
    assert server.text(BASE_NAME, temperature=1.0, seed=3, **filters) == server.text(BASE_NAME)


@pytest.mark.parametrize("top_k", [-1, 0, N_VOCAB, 2**40, 2**64, 10**30])
def test_top_k_beyond_the_vocabulary_filters_nothing(server, top_k):
    assert server.text(BASE_NAME, temperature=1.0, seed=3, top_k=top_k, min_p=1e-9) == server.text(
        BASE_NAME, temperature=1.0, seed=3, min_p=1e-9
    )


def test_logit_bias_forces_and_forbids_tokens(server, tiny):
    forced = server.complete(max_tokens=3, logit_bias={"40": 100})
    assert texts(forced) == [tiny.tokenizer.decode([40, 40, 40])]
    first = server.complete(max_tokens=1, logprobs=1)["choices"][0]
    (token,) = first["logprobs"]["tokens"]
    ids = [i for i in range(N_VOCAB) if tiny.tokenizer.decode([i], skip_special_tokens=False) == token]
    without = server.complete(max_tokens=1, logprobs=1, logit_bias={str(i): -100 for i in ids})["choices"][0]
    assert without["logprobs"]["tokens"] != [token]


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 10}])
def test_penalties_make_tokens_come_less_often(server, penalty):
    few = {str(token_id): 5.0 for token_id in range(40, 46)}
    assert _n_distinct(server, logit_bias=few, **penalty) > _n_distinct(server, logit_bias=few)


def _n_distinct(server, **body):
    return len(set(server.complete(max_tokens=60, logprobs=0, **body)["choices"][0]["logprobs"]["tokens"]))


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_logprobs_are_parallel_lists_that_hold_the_chosen_token(server, model):
    answer = server.complete(model=model, max_tokens=12, temperature=1.5, seed=4, logprobs=5)
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(numbers) for numbers in logprobs.values()} == {12}
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob, "the same float, to the bit"
        assert 1 <= len(top) <= 6
        assert all(number <= 0 for number in top.values())
        assert sum(map(math.exp, top.values())) <= 1.0001
    offset = 0
    for token, found in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert found == offset
        offset += len(token)


def test_logprobs_0_has_the_chosen_token_alone(server):
    logprobs = server.complete(max_tokens=2, logprobs=0)["choices"][0]["logprobs"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [[token] for token in logprobs["tokens"]]


def test_logprobs_do_not_change_the_answer(server):
    body = {"temperature": 1.0, "seed": 9, "max_tokens": 10}
    assert texts(server.complete(**body)) == texts(server.complete(**body, logprobs=3))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "the cat", "max_tokens": 40},
        {"prompt": "the cat", "model": "beta", "max_tokens": 24, "stop": [" the", "zzz"]},
        {"prompt": "the cat", "n": 3, "temperature": 1.0, "seed": 1, "max_tokens": 20},
        {"prompt": ["the cat", "on the mat"], "n": 2, "temperature": 1.0, "seed": 1, "max_tokens": 20},
        {"prompt": "the cat", "max_tokens": 4, "logit_bias": {str(EOS_ID): 100}, "ignore_eos": False},
    ],
    ids=["greedy", "stop string", "n", "batch and n", "end of sequence"],
)
def test_streamed_chunks_joined_are_the_whole_answer(server, body):
    whole = server.complete(**body)
    events = server.stream(PATH, **body)
    text, finish = joined(events)
    assert text == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert finish == {choice["index"]: choice["finish_reason"] for choice in whole["choices"]}
    assert len({event["id"] for event in events}) == 1
    assert all(event["object"] == "text_completion" and "usage" not in event for event in events)
    assert {event["system_fingerprint"] for event in events} == {whole["system_fingerprint"]}


def test_streamed_logprobs_joined_are_the_whole_answer_s(server):
    body = {"prompt": ["the cat", "a"], "max_tokens": 10, "logprobs": 2}
    whole = server.complete(**body)
    parts = {0: {}, 1: {}}
    for event in server.stream(PATH, **body):
        (choice,) = event["choices"]
        for name, numbers in choice["logprobs"].items():
            parts[choice["index"]].setdefault(name, []).extend(numbers)
    for choice in whole["choices"]:
        expected = choice["logprobs"]
        found = parts[choice["index"]]
        assert (found["tokens"], found["text_offset"]) == (expected["tokens"], expected["text_offset"])
        assert found["token_logprobs"] == pytest.approx(expected["token_logprobs"], abs=1e-4)


def test_include_usage_adds_one_last_chunk_without_choices(server):
    body = {"prompt": ["the cat", "a"], "n": 2, "max_tokens": 7, "temperature": 1.0}
    *chunks, last = server.stream(PATH, **body, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 28)
    assert last["usage"]["total_tokens"] == 31


def test_continuous_usage_counts_up_with_every_chunk(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = server.stream(PATH, prompt="the cat", max_tokens=6, stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5, 6]
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {2}
    assert last["usage"] == chunks[-1]["usage"]


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, {"include_usage": None}])
def test_no_usage_chunk_unless_it_is_asked_for(server, options):
    assert all(event["choices"] for event in server.stream(PATH, prompt="a", stream_options=options))


def test_null_means_default(server):
    names = (
        "n temperature top_k top_p min_p seed stop stop_token_ids presence_penalty frequency_penalty logprobs user "
        "repetition_penalty logit_bias stream stream_options max_tokens ignore_eos echo best_of suffix tools"
    )
    body = {"model": BASE_NAME, "prompt": "a"} | dict.fromkeys(names.split())
    assert server.client.post(PATH, json=body).status_code == 200


@pytest.mark.parametrize(
    "extreme",
    [
        pytest.param({"temperature": 1e308}, marks=pytest.mark.native_only("vLLM takes temperatures up to 2")),
        {"temperature": 1e-308},
        {"repetition_penalty": 1e-308},
    ],
)
def test_extreme_values_in_range_give_an_answer(server, extreme):
    answer = server.complete(**({"temperature": 1.0} | extreme), seed=1, max_tokens=3)
    assert answer["usage"]["completion_tokens"] == 3
